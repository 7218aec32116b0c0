// The window around a point, for look-ups on every device, and the checks of its arguments.
#pragma once

#include <cstdint>
#include <vector>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

constexpr int64_t kMaxLevels = 16;
constexpr int64_t kMaxRadius = 16;

inline void check_level_count(const char* op, size_t levels) {
  check_range(op, "levels", static_cast<int64_t>(levels), 1, kMaxLevels);
}

inline void check_window(const char* op, const Tensor& coords, int64_t radius) {
  check_shape(op, "coords", coords, "[B, 2, H, W]", coords.dim() == 4 && coords.size(1) == 2);
  check_dtype(op, "coords", coords, kCoordinateDtypes);
  check_range(op, "radius", radius, 0, kMaxRadius);
}

// Shape of what a look-up gives.
inline std::vector<int64_t> windows_shape(const Tensor& coords, size_t levels, int64_t radius) {
  const int64_t side = 2 * radius + 1;
  return {coords.size(0), static_cast<int64_t>(levels) * side * side, coords.size(2), coords.size(3)};
}

enum class Reach { kMissing, kOutside, kNear };  // NaN; no tap inside the map; some tap inside

template <class T>
struct Window {
  Reach reach;
  int64_t x, y;  // first of the 2r + 2 taps of each axis; only with kNear
  T fx, fy;      // weight of the later tap of each pair
};

// Window of radius r around (x, y) / 2^level on a map of rows x columns. Compared as floats before any
// integer cast: a far coordinate may not fit an integer.
template <class T>
FLOWFUSE_INLINE Window<T> window_at(double x, double y, int level, int radius, int64_t rows, int64_t columns) {
  if (x != x || y != y) return {Reach::kMissing, 0, 0, T(0), T(0)};
  const double scale = 1.0 / static_cast<double>(int64_t{1} << level);
  x *= scale;
  y *= scale;
  const double before = -(radius + 1.0);
  const double after = static_cast<double>(radius);
  if (!(x >= before && x < columns + after && y >= before && y < rows + after)) {
    return {Reach::kOutside, 0, 0, T(0), T(0)};
  }
  const double left = __builtin_floor(x);
  const double top = __builtin_floor(y);
  return {Reach::kNear, static_cast<int64_t>(left) - radius, static_cast<int64_t>(top) - radius,
          static_cast<T>(x - left), static_cast<T>(y - top)};
}

// Taps of the window that lie inside the map: columns [x0, x1) and rows [y0, y1) of the 2r + 2 of each axis.
struct TapRange {
  int x0, x1, y0, y1;
};

template <class T>
FLOWFUSE_INLINE TapRange taps_inside(const Window<T>& window, int radius, int64_t rows, int64_t columns) {
  if (window.reach != Reach::kNear) return {0, 0, 0, 0};
  const int64_t side = 2 * radius + 2;
  const int64_t x1 = columns - window.x < side ? columns - window.x : side;
  const int64_t y1 = rows - window.y < side ? rows - window.y : side;
  return {static_cast<int>(window.x < 0 ? -window.x : 0), static_cast<int>(x1),
          static_cast<int>(window.y < 0 ? -window.y : 0), static_cast<int>(y1)};
}

// Weights of the four taps of each value: earlier or later (0, 1) in x, then in y.
template <class T>
struct Corners {
  T w00, w10, w01, w11;
};

template <class T>
FLOWFUSE_INLINE Corners<T> corners_of(const Window<T>& window) {
  const T fx = window.fx, fy = window.fy;
  return {(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy};
}

// Value of a window between two neighbouring columns of taps, `near` and `far` [2r + 2], and the rows dy, dy + 1.
template <class T>
FLOWFUSE_INLINE T combined_value(const Corners<T>& corners, const T* near, const T* far, int dy) {
  return corners.w00 * near[dy] + corners.w10 * far[dy] + corners.w01 * near[dy + 1] + corners.w11 * far[dy + 1];
}

// Adds to (gx, gy) the gradient of combined_value, times g, in the centre of the level.
template <class T>
FLOWFUSE_INLINE void add_centre_gradient(T g, const Window<T>& window, const T* near, const T* far, int dy, T& gx,
                                         T& gy) {
  const T fx = window.fx, fy = window.fy;
  gx += g * ((1 - fy) * (far[dy] - near[dy]) + fy * (far[dy + 1] - near[dy + 1]));
  gy += g * ((1 - fx) * (near[dy + 1] - near[dy]) + fx * (far[dy + 1] - far[dy]));
}

// Gradient in the tap (dx, dy) of a window, gathered from the values [2r + 1][2r + 1] (x slow, `stride` apart) that it
// takes part in.
template <class T>
FLOWFUSE_INLINE T tap_gradient(const T* grad, int64_t stride, const Corners<T>& corners, int radius, int dx, int dy) {
  const int side = 2 * radius + 1;
  T sum = 0;
  if (dx > 0 && dy > 0) sum += corners.w11 * grad[((dx - 1) * side + dy - 1) * stride];
  if (dx > 0 && dy < side) sum += corners.w10 * grad[((dx - 1) * side + dy) * stride];
  if (dx < side && dy > 0) sum += corners.w01 * grad[(dx * side + dy - 1) * stride];
  if (dx < side && dy < side) sum += corners.w00 * grad[(dx * side + dy) * stride];
  return sum;
}

}  // namespace flowfuse
