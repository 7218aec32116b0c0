// Arithmetic of the operators that host and device share, written once.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FLOWFUSE_INLINE __host__ __device__ __forceinline__
#else
// Forced: the CPU variants (cpu/dispatch.h) must hold their own copy, compiled for their instruction set.
#define FLOWFUSE_INLINE inline __attribute__((always_inline))
#endif
#define FLOWFUSE_INLINE_LAMBDA __attribute__((always_inline))

namespace flowfuse {

// Number of bits that a count, not negative, takes.
FLOWFUSE_INLINE int bit_length(int64_t count) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(count);
#else
  return count == 0 ? 0 : 64 - __builtin_clzll(static_cast<unsigned long long>(count));
#endif
}

// ---- voxelize: integer weights -------------------------------------------------------------------

constexpr int kTimeBits = 15;

// Fraction bits of the two space weights for an item of `count` events: 15, less for large items, so that
// count * 2^(kTimeBits + 2 bits) stays below 2^63 and no sum of a cell can overflow.
FLOWFUSE_INLINE int space_bits(int64_t count) {
  const int length = bit_length(count);
  const int bits = length < 48 ? (48 - length) / 2 : 0;
  return bits < 15 ? bits : 15;
}

struct TimeWeight {
  int64_t bin;   // the earlier of the two bins
  int64_t late;  // weight of the later one, in 1 / 2^kTimeBits
};

// elapsed in [0, duration), duration at most 2^40, bins at most 2^16.
FLOWFUSE_INLINE TimeWeight time_weight(int64_t elapsed, int64_t duration, int64_t bins) {
  const uint64_t position = static_cast<uint64_t>(bins - 1) * static_cast<uint64_t>(elapsed);
  const uint64_t divisor = static_cast<uint64_t>(duration);
  if (position < (uint64_t{1} << (63 - kTimeBits))) {  // one division gives both
    const uint64_t fixed = (position << kTimeBits) / divisor;
    return {static_cast<int64_t>(fixed >> kTimeBits),
            static_cast<int64_t>(fixed & ((uint64_t{1} << kTimeBits) - 1))};
  }
  return {static_cast<int64_t>(position / divisor),
          static_cast<int64_t>(((position % divisor) << kTimeBits) / divisor)};
}

struct SpaceWeight {
  int64_t cell;  // floor of the position
  int64_t next;  // weight of cell + 1, in 1 / 2^bits
};

// position in (-1, 2^20].
FLOWFUSE_INLINE SpaceWeight space_weight(double position, int bits) {
  const double cell = __builtin_floor(position);
  const double unit = static_cast<double>(int64_t{1} << bits);
  // Numbers of this size have no fraction: the sum is rounded, half to even, as rint does, which has no vector form.
  constexpr double kWhole = 6755399441055744.0;  // 1.5 * 2^52
  return {static_cast<int64_t>(cell), static_cast<int64_t>(((position - cell) * unit + kWhole) - kWhole)};
}

// ---- correlation: the window around a point --------------------------------------------------------

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
FLOWFUSE_INLINE Window<T> window_at(double x, double y, int level, int radius, int64_t rows,
                                    int64_t columns) {
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
FLOWFUSE_INLINE T tap_gradient(const T* grad, int64_t stride, const Corners<T>& corners, int radius, int dx,
                               int dy) {
  const int side = 2 * radius + 1;
  T sum = 0;
  if (dx > 0 && dy > 0) sum += corners.w11 * grad[((dx - 1) * side + dy - 1) * stride];
  if (dx > 0 && dy < side) sum += corners.w10 * grad[((dx - 1) * side + dy) * stride];
  if (dx < side && dy > 0) sum += corners.w01 * grad[(dx * side + dy - 1) * stride];
  if (dx < side && dy < side) sum += corners.w00 * grad[(dx * side + dy) * stride];
  return sum;
}

}  // namespace flowfuse
