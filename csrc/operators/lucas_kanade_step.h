// lucas_kanade_step for every device: its check, its formulas at one pixel and one cell, and the part of the host.
#pragma once

#include <cmath>
#include <cstdint>

#include "checks.h"
#include "portable.h"
#include "tensors.h"

namespace flowfuse {

inline void check_lucas_kanade_step(const char* op, const Tensor& frame0, const Tensor& frame1, const Tensor& flow,
                                    const Tensor& prior) {
  check_shape(op, "frame0", frame0, "[B, 1, H, W]", frame0.dim() == 4 && frame0.size(1) == 1);
  const int64_t batch = frame0.size(0), height = frame0.size(2), width = frame0.size(3);
  check_dtype(op, "frame0", frame0, kCoordinateDtypes);
  const auto check_exact = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, {frame0.scalar_type()});
    check_device(op, name, tensor, "frame0", frame0);
  };
  check_shape(op, "frame1", frame1, {batch, 1, height, width});
  check_exact("frame1", frame1);
  check_shape(op, "flow", flow, {batch, 2, height, width});
  check_exact("flow", flow);
  const bool cells = prior.dim() == 4 && prior.size(0) == batch && prior.size(1) == 1 && prior.size(2) > 0 &&
                     prior.size(3) > 0 && width % prior.size(3) == 0 && height % prior.size(2) == 0 &&
                     height / prior.size(2) == width / prior.size(3);
  check_shape(op, "prior", prior, "[B, 1, H / cell, W / cell]", cells);
  check_exact("prior", prior);
}

constexpr int kMoments = 8;          // of a cell: means of x, y, t, xx, xy, yy, xt, yt
constexpr double kMostChange = 2.0;  // px; beyond it no linear model of an image holds

FLOWFUSE_INLINE int64_t within(int64_t at, int64_t size) { return at < 0 ? 0 : at < size ? at : size - 1; }

// Bilinear, with a repeated border; NaN reads the first row or column.
template <class T>
FLOWFUSE_INLINE T sample_border(const T* image, int64_t height, int64_t width, T x, T y) {
  const T right = static_cast<T>(width - 1), bottom = static_cast<T>(height - 1);
  const T column = x > 0 ? (x < right ? x : right) : T(0), row = y > 0 ? (y < bottom ? y : bottom) : T(0);
  const int32_t x0 = static_cast<int32_t>(column), y0 = static_cast<int32_t>(row);
  const int32_t x1 = x0 + 1 < width ? x0 + 1 : x0, y1 = y0 + 1 < height ? y0 + 1 : y0;
  const T fx = column - static_cast<T>(x0), fy = row - static_cast<T>(y0);
  const T* above = image + y0 * width;
  const T* below = image + y1 * width;
  return (1 - fy) * ((1 - fx) * above[x0] + fx * above[x1]) + fy * ((1 - fx) * below[x0] + fx * below[x1]);
}

// The derivative by central differences of fourth order, from the values at -2, -1, 1 and 2.
template <class T>
FLOWFUSE_INLINE T derivative(T far_before, T before, T after, T far_after) {
  return ((after - before) - (far_after - far_before) * static_cast<T>(1.0 / 8)) * static_cast<T>(2.0 / 3);
}

// The change [2] that the weighted means of moments around a cell ask for.
template <class T>
FLOWFUSE_INLINE void solve_step(const T moments[kMoments], T prior, T& change_x, T& change_y) {
  const T x = moments[0], y = moments[1], t = moments[2];
  T xx = moments[3] - x * x, yy = moments[5] - y * y;
  xx = xx > 0 ? xx : T(0);
  yy = yy > 0 ? yy : T(0);
  const T xy = moments[4] - x * y, xt = moments[6] - x * t, yt = moments[7] - y * t;
  // Of the determinant, what rounding could make negative apart from what the prior adds.
  T determinant = xx * yy - xy * xy;
  determinant = (determinant > 0 ? determinant : T(0)) + prior * (xx + yy + prior);
  change_x = (xy * yt - (yy + prior) * xt) / determinant;
  change_y = (xy * xt - (xx + prior) * yt) / determinant;
  const T length = std::sqrt(change_x * change_x + change_y * change_y), most = static_cast<T>(kMostChange);
  const T scale = length > most ? most / length : T(1);
  change_x *= scale;
  change_y *= scale;
}

// Shapes: frames, mean and difference [B, H, W], flow [B, 2, H, W], moments [B, 8, h, w], prior [B, h, w],
// change [B, 2, h, w].
template <class T>
struct GradientStep {
  const T* frame0;
  const T* frame1;
  const T* flow;
  const T* prior;
  T* mean;        // of frame 0 and of frame 1, warped
  T* difference;  // of frame 1, warped, and frame 0
  T* moments;
  T* change;
  int64_t batch, height, width, cell;

  FLOWFUSE_INLINE int64_t rows() const { return height / cell; }
  FLOWFUSE_INLINE int64_t columns() const { return width / cell; }
};

// Makes the change of a flow, and what it is made of: calls run(GradientStep<T>), where there is a cell, to fill it. Its
// arguments have been checked.
template <class Run>
Tensor make_gradient_step(const char* op, const Tensor& frame0, const Tensor& frame1, const Tensor& flow,
                          const Tensor& prior, const Run& run) {
  const ScalarType dtype = frame0.scalar_type();
  const int64_t batch = prior.size(0), rows = prior.size(2), columns = prior.size(3);
  const int64_t height = frame0.size(2), width = frame0.size(3);
  const Tensor change = allocate(op, frame0, {batch, 2, rows, columns}, dtype);
  if (change.numel() == 0) return change;
  const Tensor images = allocate(op, frame0, {2, batch, height, width}, dtype);
  const Tensor moments = allocate(op, frame0, {batch, kMoments, rows, columns}, dtype);
  const Tensor first = converted(frame0, dtype), second = converted(frame1, dtype);
  const Tensor motion = converted(flow, dtype), priors = converted(prior, dtype);
  const auto fill = [&](auto zero) {
    using T = decltype(zero);
    T* mean = mutable_data<T>(images);
    run(GradientStep<T>{data<T>(first), data<T>(second), data<T>(motion), data<T>(priors), mean,
                        mean + batch * height * width, mutable_data<T>(moments), mutable_data<T>(change), batch, height,
                        width, width / columns});
  };
  dtype == ScalarType::Double ? fill(double{}) : fill(float{});
  return change;
}

}  // namespace flowfuse
