// voxelize for every device: its check, and the integer weights that give the same bits everywhere.
#pragma once

#include <cstdint>

#include "events.h"

namespace flowfuse {

inline void check_voxelize(const char* op, const Tensor& x, const Tensor& y, const Tensor& t, const Tensor& p,
                           const Tensor& offsets, const Tensor& t0, const Tensor& t1, int64_t bins, int64_t height,
                           int64_t width) {
  check_events(op, x, y, t, p, offsets, {{"t0", &t0}, {"t1", &t1}});
  check_range(op, "bins", bins, 1, int64_t{1} << 16);
  check_range(op, "height", height, 1, kMaxSide);
  check_range(op, "width", width, 1, kMaxSide);
}

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
    return {static_cast<int64_t>(fixed >> kTimeBits), static_cast<int64_t>(fixed & ((uint64_t{1} << kTimeBits) - 1))};
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

struct Grid {
  int64_t bins, height, width;
  int64_t t0, t1;
  int space_bits;
};

// add(cell of the grid, weight) for each vote of an event at a pixel; false: the event is ignored.
template <class Add>
FLOWFUSE_INLINE bool spread_pixel(const Grid& grid, int64_t x, int64_t y, int64_t t, int64_t sign, const Add& add) {
  if (t < grid.t0 || t >= grid.t1 || x < 0 || x >= grid.width || y < 0 || y >= grid.height) return false;
  const TimeWeight time = time_weight(t - grid.t0, grid.t1 - grid.t0, grid.bins);
  const int64_t cell = (time.bin * grid.height + y) * grid.width + x;
  add(cell, sign * ((int64_t{1} << kTimeBits) - time.late));
  if (time.late != 0) add(cell + grid.height * grid.width, sign * time.late);  // never past the last bin: t < t1
  return true;
}

// The same for a rectified position.
template <class Add>
FLOWFUSE_INLINE bool spread_rectified(const Grid& grid, double x, double y, int64_t t, int64_t sign, const Add& add) {
  const bool on_sensor = x > -1 && x < grid.width && y > -1 && y < grid.height;  // NaN is not
  if (t < grid.t0 || t >= grid.t1 || !on_sensor) return false;
  const TimeWeight time = time_weight(t - grid.t0, grid.t1 - grid.t0, grid.bins);
  const SpaceWeight column = space_weight(x, grid.space_bits), row = space_weight(y, grid.space_bits);
  const int64_t unit = int64_t{1} << grid.space_bits;
  for (int dy = 0; dy < 2; ++dy) {
    const int64_t r = row.cell + dy;
    if (r < 0 || r >= grid.height) continue;
    const int64_t row_weight = sign * (dy ? row.next : unit - row.next);
    for (int dx = 0; dx < 2; ++dx) {
      const int64_t c = column.cell + dx;
      if (c < 0 || c >= grid.width) continue;
      const int64_t weight = row_weight * (dx ? column.next : unit - column.next);
      const int64_t cell = (time.bin * grid.height + r) * grid.width + c;
      add(cell, weight * ((int64_t{1} << kTimeBits) - time.late));
      if (time.late != 0) add(cell + grid.height * grid.width, weight * time.late);
    }
  }
  return true;
}

// What an integer sum of 1 stands for: a power of two, so that the product with it is exact.
FLOWFUSE_INLINE float voxel_scale(int space_bits) {
  return 1.0f / static_cast<float>(int64_t{1} << (kTimeBits + 2 * space_bits));
}

}  // namespace flowfuse
