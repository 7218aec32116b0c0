// A step along the brightness constancy equation: frame 1 warped, moments of the cells, and a small system each.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cpu/dispatch.h"
#include "operators/lucas_kanade_step.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

template <class T>
FLOWFUSE_INLINE void warp_row(const GradientStep<T>& params, int64_t b, int64_t y) {
  const int64_t plane = params.height * params.width, row = y * params.width;
  const T* u = params.flow + 2 * b * plane + row;
  const T* v = u + plane;
  const T* frame0 = params.frame0 + b * plane + row;
  const T* frame1 = params.frame1 + b * plane;
  T* mean = params.mean + b * plane + row;
  T* difference = params.difference + b * plane + row;
#pragma GCC ivdep
  for (int32_t x = 0; x < static_cast<int32_t>(params.width); ++x) {
    const T warped =
        sample_border(frame1, params.height, params.width, static_cast<T>(x) + u[x], static_cast<T>(y) + v[x]);
    mean[x] = (frame0[x] + warped) * static_cast<T>(0.5);
    difference[x] = warped - frame0[x];
  }
}

// Moments of a row of cells. scratch: kMoments rows of the image, and one with two pixels more on both sides.
template <class T>
FLOWFUSE_INLINE void moments_row(const GradientStep<T>& params, int64_t b, int64_t cell_row, T* scratch) {
  const int64_t width = params.width, plane = params.height * width, cell = params.cell;
  const T* mean = params.mean + b * plane;
  T* padded = scratch + kMoments * width;
  for (int64_t i = 0; i < kMoments * width; ++i) scratch[i] = T(0);
  for (int64_t y = cell_row * cell; y < (cell_row + 1) * cell; ++y) {
    const T* rows[4];
    const int64_t shifts[4] = {-2, -1, 1, 2};
    for (int i = 0; i < 4; ++i) rows[i] = mean + within(y + shifts[i], params.height) * width;
    const T* row = mean + y * width;
    for (int64_t x = 0; x < width; ++x) padded[x + 2] = row[x];
    padded[0] = padded[1] = row[0];
    padded[width + 2] = padded[width + 3] = row[width - 1];
    const T* difference = params.difference + b * plane + y * width;
#pragma GCC ivdep
    for (int64_t x = 0; x < width; ++x) {
      const T gx = derivative(padded[x], padded[x + 1], padded[x + 3], padded[x + 4]);
      const T gy = derivative(rows[0][x], rows[1][x], rows[2][x], rows[3][x]);
      const T t = difference[x];
      scratch[x] += gx;
      scratch[width + x] += gy;
      scratch[2 * width + x] += t;
      scratch[3 * width + x] += gx * gx;
      scratch[4 * width + x] += gx * gy;
      scratch[5 * width + x] += gy * gy;
      scratch[6 * width + x] += gx * t;
      scratch[7 * width + x] += gy * t;
    }
  }
  const int64_t columns = params.columns();
  const T share = 1 / static_cast<T>(cell * cell);
  for (int64_t m = 0; m < kMoments; ++m) {
    const T* from = scratch + m * width;
    T* to = params.moments + ((b * kMoments + m) * params.rows() + cell_row) * columns;
    for (int64_t x = 0; x < columns; ++x) {
      T sum = T(0);
      for (int64_t i = 0; i < cell; ++i) sum += from[x * cell + i];
      to[x] = sum * share;
    }
  }
}

// Weighted means of the moments around a row of cells, 1 2 1 in both directions, and what they ask for.
// scratch: kMoments rows of cells with one more on both sides.
template <class T>
FLOWFUSE_INLINE void solve_row(const GradientStep<T>& params, int64_t b, int64_t cell_row, T* scratch) {
  const int64_t rows = params.rows(), columns = params.columns(), stride = columns + 2;
  for (int64_t m = 0; m < kMoments; ++m) {
    const T* plane = params.moments + (b * kMoments + m) * rows * columns;
    const T* above = plane + within(cell_row - 1, rows) * columns;
    const T* here = plane + cell_row * columns;
    const T* below = plane + within(cell_row + 1, rows) * columns;
    T* to = scratch + m * stride;
    for (int64_t x = 0; x < columns; ++x) to[x + 1] = (above[x] + 2 * here[x] + below[x]) * static_cast<T>(0.25);
    to[0] = to[1];
    to[columns + 1] = to[columns];
  }
  const T* prior = params.prior + (b * rows + cell_row) * columns;
  T* change = params.change + (2 * b * rows + cell_row) * columns;
#pragma GCC ivdep
  for (int64_t x = 0; x < columns; ++x) {
    T moments[kMoments];
#pragma GCC unroll 8
    for (int64_t m = 0; m < kMoments; ++m) {
      const T* from = scratch + m * stride + x;
      moments[m] = (from[0] + 2 * from[1] + from[2]) * static_cast<T>(0.25);
    }
    solve_step(moments, prior[x], change[x], change[rows * columns + x]);
  }
}

template <class T>
void run(const GradientStep<T>& params) {
  parallel_for(0, params.batch * params.height, 16, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          warp_row(params, row / params.height, row % params.height))
  });
  const int64_t rows = params.rows();
  parallel_for(0, params.batch * rows, 4, [&](int64_t first, int64_t last) {
    std::vector<T> scratch(static_cast<size_t>((kMoments + 1) * params.width + 4));
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          moments_row(params, row / rows, row % rows, scratch.data()))
  });
  parallel_for(0, params.batch * rows, 16, [&](int64_t first, int64_t last) {
    std::vector<T> scratch(static_cast<size_t>(kMoments * (params.columns() + 2)));
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          solve_row(params, row / rows, row % rows, scratch.data()))
  });
}

Tensor lucas_kanade_step(Tensor frame0, Tensor frame1, Tensor flow, Tensor prior) {
  const char* op = "lucas_kanade_step";
  check_lucas_kanade_step(op, frame0, frame1, flow, prior);
  return make_gradient_step(op, frame0, frame1, flow, prior, [&](const auto& params) { run(params); });
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("lucas_kanade_step", TORCH_BOX(&flowfuse::cpu::lucas_kanade_step));
}
