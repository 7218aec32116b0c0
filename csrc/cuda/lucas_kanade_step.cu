// A step along the brightness constancy equation: frame 1 warped, a thread a pixel; then moments of the cells and a
// small system each, a thread a cell.
#include "cuda/launch.cuh"
#include "operators/lucas_kanade_step.h"

namespace flowfuse::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads) warp_frames(GradientStep<T> params) {
  const int64_t plane = params.height * params.width;
  for (int64_t index = first_item(); index < params.batch * plane; index += item_step()) {
    const int64_t b = index / plane, pixel = index % plane, y = pixel / params.width, x = pixel % params.width;
    const T* flow = params.flow + 2 * b * plane + pixel;
    const T before = params.frame0[index];
    const T warped = sample_border(params.frame1 + b * plane, params.height, params.width, static_cast<T>(x) + flow[0],
                                   static_cast<T>(y) + flow[plane]);
    params.mean[index] = (before + warped) * static_cast<T>(0.5);
    params.difference[index] = warped - before;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) cell_moments(GradientStep<T> params) {
  const int64_t columns = params.columns(), cells = params.rows() * columns, width = params.width;
  for (int64_t index = first_item(); index < params.batch * cells; index += item_step()) {
    const int64_t b = index / cells, cell = index % cells;
    const int64_t top = cell / columns * params.cell, left = cell % columns * params.cell;
    const T* mean = params.mean + b * params.height * width;
    const T* difference = params.difference + b * params.height * width;
    T sums[kMoments] = {};
    for (int64_t y = top; y < top + params.cell; ++y) {
      for (int64_t x = left; x < left + params.cell; ++x) {
        const auto at_row = [&](int64_t row) { return mean[within(row, params.height) * width + x]; };
        const auto at_column = [&](int64_t column) { return mean[y * width + within(column, width)]; };
        const T gx = derivative(at_column(x - 2), at_column(x - 1), at_column(x + 1), at_column(x + 2));
        const T gy = derivative(at_row(y - 2), at_row(y - 1), at_row(y + 1), at_row(y + 2));
        const T t = difference[y * width + x];
        const T values[kMoments] = {gx, gy, t, gx * gx, gx * gy, gy * gy, gx * t, gy * t};
#pragma unroll
        for (int m = 0; m < kMoments; ++m) sums[m] += values[m];
      }
    }
    const T share = 1 / static_cast<T>(params.cell * params.cell);
#pragma unroll
    for (int m = 0; m < kMoments; ++m) params.moments[(b * kMoments + m) * cells + cell] = sums[m] * share;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads, 2) solve_cells(GradientStep<T> params) {
  const int64_t rows = params.rows(), columns = params.columns(), cells = rows * columns;
  for (int64_t index = first_item(); index < params.batch * cells; index += item_step()) {
    const int64_t b = index / cells, cell = index % cells, y = cell / columns, x = cell % columns;
    T means[kMoments];
#pragma unroll
    for (int m = 0; m < kMoments; ++m) {
      const T* plane = params.moments + (b * kMoments + m) * cells;
      T sum = 0;
#pragma unroll
      for (int i = -1; i <= 1; ++i) {
        const T* row = plane + within(y + i, rows) * columns;
        const T part = row[within(x - 1, columns)] + 2 * row[x] + row[within(x + 1, columns)];
        sum += i == 0 ? 2 * part : part;
      }
      means[m] = sum * static_cast<T>(1.0 / 16);
    }
    T* change = params.change + 2 * b * cells + cell;
    solve_step(means, params.prior[index], change[0], change[cells]);
  }
}

template <class T>
void run(const DeviceCall& call, const GradientStep<T>& params) {
  const int64_t pixels = params.batch * params.height * params.width, cells = pixels / params.cell / params.cell;
  call.launch(warp_frames<T>, blocks_for(pixels), kThreads, 0, params);
  call.launch(cell_moments<T>, blocks_for(cells), kThreads, 0, params);
  call.launch(solve_cells<T>, blocks_for(cells), kThreads, 0, params);
}

Tensor lucas_kanade_step(Tensor frame0, Tensor frame1, Tensor flow, Tensor prior) {
  const char* op = "lucas_kanade_step";
  check_lucas_kanade_step(op, frame0, frame1, flow, prior);
  const DeviceCall call(op, frame0);
  return make_gradient_step(op, frame0, frame1, flow, prior, [&](const auto& params) { run(call, params); });
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("lucas_kanade_step", TORCH_BOX(&flowfuse::cuda::lucas_kanade_step));
}
