// Look-ups in a stored volume: where taps lie in it.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <vector>

#include "cpu/lookup.h"

namespace flowfuse::cpu {

template <class T>
struct VolumeLevel {
  const T* values;  // [B, height, width, rows, columns]
  T* grad;
  int64_t rows, columns;

  FLOWFUSE_INLINE int64_t slice(const Lookup<T>& params, const PixelTile<T>& tile, int i) const {  // of one pixel
    return (tile.b * params.pixels() + tile.pixel(params, i)) * rows * columns;
  }
};

template <class T>
struct VolumeLookup : Lookup<T> {
  VolumeLevel<T> volumes[kMaxLevels];
};

// Calls visit(first tap, first cell, count) for each row of taps of pixel i inside the map; taps count in its block.
template <class T, class Visit>
FLOWFUSE_INLINE void visit_rows(const VolumeLookup<T>& params, const PixelTile<T>& tile, int level, int i,
                                const Visit& visit) {
  const VolumeLevel<T>& map = params.volumes[level];
  const Window<T>& window = tile.windows[i];
  const TapRange range = taps_inside(window, params.radius, map.rows, map.columns);
  for (int dy = range.y0; dy < range.y1; ++dy) {
    const int64_t cell = (window.y + dy) * map.columns + window.x + range.x0;
    visit(params.first_tap() + dy * params.stride() + range.x0, cell, range.x1 - range.x0);
  }
}

template <class T>
FLOWFUSE_INLINE void read_taps(const VolumeLookup<T>& params, const PixelTile<T>& tile, int level, T* taps) {
  const VolumeLevel<T>& map = params.volumes[level];
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const T* values = map.values + map.slice(params, tile, i);
    visit_rows(params, tile, level, i, [&](int tap, int64_t cell, int count) FLOWFUSE_INLINE_LAMBDA {
      T* row = taps + params.tap_at(i, tap);
      for (int k = 0; k < count; ++k) row[k * kTileColumns] = values[cell + k];
    });
  }
  clear_outside(params, tile, map.rows, map.columns, taps);
}

template <class T>
VolumeLookup<T> lookup_of(std::vector<Tensor>& volumes, const Tensor& coords, int64_t radius) {
  VolumeLookup<T> params{};
  set_coords(params, coords, volumes.size(), radius);
  for (size_t level = 0; level < volumes.size(); ++level) {
    volumes[level] = torch::stable::contiguous(volumes[level]);
    params.volumes[level] = {data<T>(volumes[level]), nullptr, volumes[level].size(3), volumes[level].size(4)};
  }
  return params;
}

}  // namespace flowfuse::cpu
