// Matrix products with sums in one fixed order, whatever the number of threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>

#include "cpu/dispatch.h"
#include "cpu/vector.h"
#include "portable.h"

namespace flowfuse::cpu {

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

// A block of `out` has its sums in registers: so many rows and vectors.
constexpr int kPanelVectors = 3;
template <int kBytes>
constexpr int kPanelRows = kBytes == 64 ? 8 : 4;
template <class T, int kBytes>
constexpr int kPanelColumns = kPanelVectors * kLanes<T, kBytes>;

// One panel of columns of one matrix: b's panel is packed a stretch at a time, which stays in the first-level cache,
// and reused by all rows.
template <int kBytes, class T>
FLOWFUSE_INLINE void multiply_panel(const Product<T>& params, int64_t item, int64_t panel) {
  constexpr int kWidth = kPanelColumns<T, kBytes>, kRows = kPanelRows<kBytes>, kAll = kLanes<T, kBytes>;
  constexpr int64_t kDepth = 128;
  using V = Vector<T, kBytes>;
  alignas(64) T packed[kDepth * kWidth];
  const int64_t first = panel * kWidth;
  const int64_t width = params.columns - first < kWidth ? params.columns - first : kWidth;
  const T* a = params.a + item * params.a_batch;
  const T* b = params.b + item * params.b_batch + first;
  T* out = params.out + item * params.rows * params.columns + first;
  for (int64_t k0 = 0; k0 < params.depth; k0 += kDepth) {
    const int64_t depth = params.depth - k0 < kDepth ? params.depth - k0 : kDepth;
    for (int64_t k = 0; k < depth; ++k) {
      for (int64_t n = 0; n < kWidth; ++n) packed[k * kWidth + n] = n < width ? b[(k0 + k) * params.columns + n] : T(0);
    }
    const bool last = k0 + depth == params.depth;
    for (int64_t m0 = 0; m0 < params.rows; m0 += kRows) {
      const T* row[kRows];
      V sum[kRows][kPanelVectors] = {};
      for (int i = 0; i < kRows; ++i) {
        const int64_t m = m0 + i < params.rows ? m0 + i : params.rows - 1;  // a spare row is computed, not stored
        row[i] = a + m * params.a_row + k0 * params.a_column;
      }
      const int64_t step = params.a_column;
      for (int64_t k = 0; k < depth; ++k) {
        V right[kPanelVectors];
#pragma GCC unroll 3
        for (int v = 0; v < kPanelVectors; ++v) load(packed + k * kWidth + v * kAll, right[v]);
#pragma GCC unroll 8
        for (int i = 0; i < kRows; ++i) {
          const T factor = row[i][k * step];
#pragma GCC unroll 3
          for (int v = 0; v < kPanelVectors; ++v) sum[i][v] += factor * right[v];
        }
      }
#pragma GCC unroll 8
      for (int i = 0; i < kRows; ++i) {
        if (m0 + i >= params.rows) continue;
        T* target = out + (m0 + i) * params.columns;
#pragma GCC unroll 3
        for (int v = 0; v < kPanelVectors; ++v) {
          const int64_t left = width - v * kAll;
          V total = sum[i][v], earlier = {};
          if (left >= kAll) {
            if (k0 > 0) load(target + v * kAll, earlier);
            total += earlier;
            if (last) total *= params.scale;
            store(total, target + v * kAll);
          } else {
            for (int64_t n = 0; n < left; ++n) {
              const T before = k0 > 0 ? target[v * kAll + n] : T(0);
              const T value = before + total[n];
              target[v * kAll + n] = last ? value * params.scale : value;
            }
          }
        }
      }
    }
  }
}

template <class T>
void multiply(const Product<T>& params) {
  if (params.rows == 0 || params.depth == 0 || params.columns == 0) return;
  int64_t panels = 0;
  FLOWFUSE_VARIANTS(panels = (params.columns + kPanelColumns<T, kVectorBytes> - 1) / kPanelColumns<T, kVectorBytes>)
  torch::stable::parallel_for(0, params.batch * panels, 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t task = first; task < last; ++task)
                          multiply_panel<kVectorBytes>(params, task / panels, task % panels))
  });
}

}  // namespace flowfuse::cpu
