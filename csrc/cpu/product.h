// Matrix products with sums in one fixed order, whatever the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "cpu/dispatch.h"
#include "sampling.h"

namespace flowfuse {

// out[m][n] = scale * sum_k a[m * a_row + k * a_column] * b[k * columns + n], for each of `batch` matrices.
template <class T>
struct Product {
  const T* a;
  int64_t a_batch, a_row, a_column;
  const T* b;
  int64_t b_batch;
  T* out;
  int64_t batch, rows, depth, columns;
  T scale;
};

// One panel of columns of one matrix: b's panel is packed a stretch at a time and reused by all rows.
template <class T>
FLOWFUSE_INLINE void multiply_panel(const Product<T>& job, int64_t item, int64_t panel) {
  constexpr int64_t kWidth = 128 / sizeof(T);  // two 512-bit registers
  constexpr int64_t kDepth = 256;
  constexpr int64_t kRows = 4;
  alignas(64) T packed[kDepth * kWidth];
  const int64_t first = panel * kWidth;
  const int64_t width = job.columns - first < kWidth ? job.columns - first : kWidth;
  const T* a = job.a + item * job.a_batch;
  const T* b = job.b + item * job.b_batch + first;
  T* out = job.out + item * job.rows * job.columns + first;
  for (int64_t k0 = 0; k0 < job.depth; k0 += kDepth) {
    const int64_t depth = job.depth - k0 < kDepth ? job.depth - k0 : kDepth;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t n = 0; n < kWidth; ++n) {
        packed[k * kWidth + n] = n < width ? b[(k0 + k) * job.columns + n] : T(0);
      }
    }
    const bool last = k0 + depth == job.depth;
    for (int64_t m0 = 0; m0 < job.rows; m0 += kRows) {
      const T* row[kRows];
      T sum[kRows][kWidth];
      for (int64_t i = 0; i < kRows; ++i) {
        const int64_t m = m0 + i < job.rows ? m0 + i : job.rows - 1;  // a spare row is computed, not stored
        row[i] = a + m * job.a_row + k0 * job.a_column;
        for (int64_t n = 0; n < kWidth; ++n) sum[i][n] = T(0);
      }
      for (int64_t k = 0; k < depth; ++k) {
        for (int64_t i = 0; i < kRows; ++i) {
          const T factor = row[i][k * job.a_column];
          for (int64_t n = 0; n < kWidth; ++n) sum[i][n] += factor * packed[k * kWidth + n];
        }
      }
      for (int64_t i = 0; i < kRows && m0 + i < job.rows; ++i) {
        T* target = out + (m0 + i) * job.columns;
        for (int64_t n = 0; n < width; ++n) {
          const T total = k0 == 0 ? sum[i][n] : target[n] + sum[i][n];
          target[n] = last ? total * job.scale : total;
        }
      }
    }
  }
}

template <class T>
FLOWFUSE_INLINE void multiply_panels(const Product<T>& job, int64_t panels, int64_t first, int64_t last) {
  for (int64_t task = first; task < last; ++task) multiply_panel(job, task / panels, task % panels);
}

template <class T>
void multiply(const Product<T>& job) {
  const int64_t panels = (job.columns * int64_t{sizeof(T)} + 127) / 128;
  if (job.rows == 0 || job.depth == 0) return;
  torch::stable::parallel_for(0, job.batch * panels, 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(multiply_panels(job, panels, first, last))
  });
}

}  // namespace flowfuse
