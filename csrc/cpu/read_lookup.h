// Windows that are looked up and read at once, a tile of pixels at a time: they never leave the cache.
#pragma once

#include <cstdint>

#include "cpu/lookup.h"
#include "cpu/read_windows.h"

namespace flowfuse::cpu {

static_assert(kBlock == kTilePixels, "the windows of a tile are read as a block");

// Numbers that read_tile works with: taps, and windows with what matches.
template <class T>
int64_t reading_workspace(const Lookup<T>& lookup, int64_t channels) {
  return kTilePixels * lookup.block() + kBlock * (channels + 3);
}

// make_taps(tile, level, taps) finds the windows of a level and their taps.
template <int kBytes, class T, class MakeTaps>
FLOWFUSE_INLINE void read_tile(const Lookup<T>& lookup, const WindowReading<T, T>& params, int64_t index, T sharpness,
                               T* workspace, const MakeTaps& make_taps) {
  T *taps = workspace, *values = taps + kTilePixels * lookup.block();
  PixelTile<T> tile;
  load_tile(lookup, index, tile);
  const PixelBlock block{tile.b, tile.pixel(lookup, 0), lookup.width, tile.rows, tile.columns, kTileColumns};
  T fade[kBlock], top[kBlock];
  load_fade(params, block, fade);
  const int64_t window = int64_t{lookup.value_side()} * lookup.value_side();
  for (int level = 0; level < lookup.levels; ++level) {
    make_taps(tile, level, taps);
    T* own = values + level * window * kBlock;
    combine_taps<kBytes>(lookup, tile, taps, own, kTileColumns, kBlock);
    for (int64_t k = 0; k < window; ++k) {
      fade_values(level * window + k, own + k * kBlock, fade, own + k * kBlock, top);
    }
  }
  read_block<kBytes>(params, block, sharpness, values, top);
}

}  // namespace flowfuse::cpu
