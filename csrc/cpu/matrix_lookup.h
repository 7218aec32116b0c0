// Look-ups on demand by the matrix unit: products of bfloat16 are so fast there that all products of 16 neighbouring
// cells of the map and 16 neighbouring pixels cost less than finding out which of them are asked for.
//
// Of a tile's footprint (feature_lookup.h) runs of 16 cells are multiplied with the rows of the tile that have a tap in
// them. Products lie as [row of cells][row of the tile][cell of the row][pixel], so that a window's taps lie at the same
// distances from its first for all pixels: values are combined for 16 pixels at a time, from gathered taps.
#pragma once

#include "cpu/dispatch.h"

#if FLOWFUSE_MATRIX_UNIT

#include <algorithm>

#include "cpu/feature_lookup.h"
#include "cpu/matrix_unit.h"
#include "cpu/vector.h"

namespace flowfuse {

static_assert(kTileColumns == kMatrixRows, "a row of a tile is a row of a register");

constexpr int kMostProducts = 2048;  // cells of a footprint, in whole runs: one of radius 16 has 34 x 48 of them

// Workspace of a thread.
struct MatrixWorkspace {
  BFloat16* features;  // of a tile's pixels [kTileRows][channels / 32][16 pairs][16 pixels][2]
  float* products;     // [rows][kTileRows][columns][16 pixels]
  BFloat16* cells;     // of a run that passes the end of the map [16][channels]

  static int64_t bytes(int64_t channels) {
    return (kTilePixels + kMatrixRows) * channels * int64_t{sizeof(BFloat16)} +
           int64_t{kMostProducts} * kTilePixels * int64_t{sizeof(float)};
  }
  MatrixWorkspace(void* memory, int64_t channels)
      : features(static_cast<BFloat16*>(memory)),
        products(reinterpret_cast<float*>(features + (kTilePixels + kMatrixRows) * channels)),
        cells(features + kTilePixels * channels) {}
};

FLOWFUSE_INLINE int whole_runs(int columns) { return (columns + kMatrixRows - 1) / kMatrixRows * kMatrixRows; }

// The features of a tile's pixels as the unit takes them. Pixels that the tile does not have are 0.
FLOWFUSE_INLINE void take_features(const FeatureLookup<float, BFloat16>& job, const Tile<float>& tile,
                                   BFloat16* features) {
  const BFloat16* map = job.f0 + tile.b * job.f0_stride;
  for (int row = 0; row < tile.rows; ++row) {
    const BFloat16* pixels[kTileColumns];
    for (int i = 0; i < kTileColumns; ++i) {
      pixels[i] = i < tile.columns ? map + tile.pixel(job, row * kTileColumns + i) * job.channels : nullptr;
    }
    for (int64_t channel = 0; channel < job.channels; channel += kMatrixDepth) {
      Vector<float, 64> pairs[kTileColumns];  // of channels: 32 bits, whose value means nothing
      for (int i = 0; i < kTileColumns; ++i) {
        if (pixels[i] == nullptr) {
          pairs[i] = Vector<float, 64>{};
        } else {
          load(pixels[i] + channel, pairs[i]);
        }
      }
      transpose<float, 64>(pairs);
      BFloat16* target = features + (row * job.channels + channel) * kTileColumns;
      for (int i = 0; i < kTileColumns; ++i) store(pairs[i], target + i * kMatrixDepth);
    }
  }
}

// Products of 16 cells, `cells` [16][channels], and kRows rows of a tile.
template <int kRows>
FLOWFUSE_INLINE void multiply_run(MatrixUnit& unit, int64_t channels, const BFloat16* cells,
                                  const BFloat16* const* features, float* const* products) {
  constexpr int kCells = 4, kFirst = 5;  // registers; sums are in those before
  unit.clear<0>();
  if constexpr (kRows > 1) unit.clear<1>();
  if constexpr (kRows > 2) unit.clear<2>();
  if constexpr (kRows > 3) unit.clear<3>();
  const int64_t cell_bytes = channels * int64_t{sizeof(BFloat16)};
  for (int64_t channel = 0; channel < channels; channel += kMatrixDepth) {
    const int64_t at = channel * kTileColumns;
    unit.load<kCells>(cells + channel, cell_bytes);
    unit.load<kFirst>(features[0] + at, kMatrixRowBytes);
    unit.multiply_add<0, kCells, kFirst>();
    if constexpr (kRows > 1) {
      unit.load<kFirst + 1>(features[1] + at, kMatrixRowBytes);
      unit.multiply_add<1, kCells, kFirst + 1>();
    }
    if constexpr (kRows > 2) {
      unit.load<kFirst + 2>(features[2] + at, kMatrixRowBytes);
      unit.multiply_add<2, kCells, kFirst + 2>();
    }
    if constexpr (kRows > 3) {
      unit.load<kFirst>(features[3] + at, kMatrixRowBytes);
      unit.multiply_add<3, kCells, kFirst>();
    }
  }
  unit.store<0>(products[0], kMatrixRowBytes);
  if constexpr (kRows > 1) unit.store<1>(products[1], kMatrixRowBytes);
  if constexpr (kRows > 2) unit.store<2>(products[2], kMatrixRowBytes);
  if constexpr (kRows > 3) unit.store<3>(products[3], kMatrixRowBytes);
}

// All products of a footprint that are asked for, and some more.
FLOWFUSE_INLINE void multiply_footprint(MatrixUnit& unit, const FeatureLookup<float, BFloat16>& job,
                                        const Tile<float>& tile, int level, const Footprint& footprint,
                                        const MatrixWorkspace& workspace) {
  const FeatureLevel<float, BFloat16>& map = job.maps[level];
  const BFloat16* f1 = map.f1 + tile.b * map.batch_stride;
  const int64_t cells = map.rows * map.columns, channels = job.channels;
  const int width = whole_runs(footprint.columns);
  for (int column = 0; column < footprint.columns; column += kMatrixRows) {
    uint64_t across = 0;
    for (int c = column; c < column + kMatrixRows && c < footprint.columns; ++c) across |= footprint.across[c];
    for (int row = 0; row < footprint.rows; ++row) {
      const uint64_t pixels = footprint.down[row] & across;
      const BFloat16* features[kTileRows];
      float* products[kTileRows];
      int count = 0;
      for (int i = 0; i < kTileRows; ++i) {
        if ((pixels >> (i * kTileColumns) & 0xffff) == 0) continue;
        features[count] = workspace.features + i * channels * kTileColumns;
        products[count++] = workspace.products + ((row * kTileRows + i) * width + column) * kTileColumns;
      }
      if (count == 0) continue;
      // A run may go on in the next row of the map: nobody asks for those products.
      const int64_t first = (footprint.top + row) * map.columns + footprint.left + column;
      const BFloat16* run = f1 + first * channels;
      if (first + kMatrixRows > cells) {
        for (int64_t i = 0; i < (cells - first) * channels; ++i) workspace.cells[i] = run[i];
        for (int64_t i = (cells - first) * channels; i < kMatrixRows * channels; ++i) {
          workspace.cells[i] = BFloat16(0, BFloat16::from_bits());
        }
        run = workspace.cells;
      }
      switch (count) {
        case 1:
          multiply_run<1>(unit, channels, run, features, products);
          break;
        case 2:
          multiply_run<2>(unit, channels, run, features, products);
          break;
        case 3:
          multiply_run<3>(unit, channels, run, features, products);
          break;
        default:
          multiply_run<4>(unit, channels, run, features, products);
      }
    }
  }
}

// Where the taps of 16 pixels lie among the products of a footprint, and their weights. Bit i of across[dx] is set
// where pixel i has column dx of its taps inside the map, that of down[dy] likewise.
struct TapPlaces {
  int32_t first[kTileColumns];
  float fx[kTileColumns], fy[kTileColumns];  // fx is NaN for a pixel without a place
  uint16_t across[2 * kMaxRadius + 2], down[2 * kMaxRadius + 2];
};

// Of the pixels of a row of a tile whose bit is set in `pixels`.
FLOWFUSE_INLINE void take_tap_places(const FeatureLookup<float, BFloat16>& job, const Tile<float>& tile, int level,
                                     const Footprint& footprint, int row, uint32_t pixels, TapPlaces& places) {
  const FeatureLevel<float, BFloat16>& map = job.maps[level];
  const int width = whole_runs(footprint.columns);
  for (int k = 0; k < job.taps(); ++k) places.across[k] = places.down[k] = 0;
  for (int i = 0; i < kTileColumns; ++i) {
    places.first[i] = 0;
    places.fx[i] = places.fy[i] = 0;
    if ((pixels >> i & 1) == 0) continue;
    const Window<float>& window = tile.windows[row * kTileColumns + i];
    if (window.reach == Reach::kMissing) places.fx[i] = __builtin_nanf("");
    const TapRange range = taps_inside(window, job.radius, map.rows, map.columns);
    if (range.x0 >= range.x1 || range.y0 >= range.y1) continue;
    const int64_t y = window.y - footprint.top, x = window.x - footprint.left;
    places.first[i] = static_cast<int32_t>(((y * kTileRows + row) * width + x) * kTileColumns + i);
    places.fx[i] = window.fx;
    places.fy[i] = window.fy;
    const uint16_t bit = static_cast<uint16_t>(1u << i);
    for (int dx = range.x0; dx < range.x1; ++dx) places.across[dx] |= bit;
    for (int dy = range.y0; dy < range.y1; ++dy) places.down[dy] |= bit;
  }
}

// The values at from[index] in the lanes whose bit is set, 0 in the others.
FLOWFUSE_INLINE void gather(const float* from, const VectorType<float, 64>::Index& index, uint32_t lanes,
                            Vector<float, 64>& values) {
  values = Vector<float, 64>{};
#if FLOWFUSE_NO_ASSEMBLY
  for (int i = 0; i < kLanes<float, 64>; ++i) {
    if (lanes >> i & 1) values[i] = from[index[i]];
  }
#else
  asm("kmovw %2, %%k1\n\tvgatherdps (%1,%3,4), %0%{%%k1%}"
      : "+&v"(values)
      : "r"(from), "r"(lanes), "v"(index)
      : "k1", "memory");
#endif
}

// Writes the values of the windows of those pixels for one level.
FLOWFUSE_INLINE void write_row(const FeatureLookup<float, BFloat16>& job, const Tile<float>& tile, int level,
                               const Footprint& footprint, int row, uint32_t pixels, const float* products) {
  using V = Vector<float, 64>;
  TapPlaces places;
  take_tap_places(job, tile, level, footprint, row, pixels, places);
  VectorType<float, 64>::Index first;
  V fx, fy;
  load(places.first, first);
  load(places.fx, fx);
  load(places.fy, fy);
  const V left = 1.0f - fx, upper = (1.0f - fy) * job.scale, lower = fy * job.scale;
  const int side = job.side(), tap_row = kTileRows * whole_runs(footprint.columns) * kTileColumns;
  float* out = job.output + job.window_values(tile.b, level) + tile.pixel(job, row * kTileColumns);
  V above[2 * kMaxRadius + 1];  // values between the columns, in the row of taps before
  for (int dy = 0; dy <= side; ++dy) {
    const float* taps = products + dy * tap_row;
    V before, after;
    gather(taps, first, places.across[0] & places.down[dy], before);
    for (int dx = 0; dx < side; ++dx) {
      gather(taps + (dx + 1) * kTileColumns, first, places.across[dx + 1] & places.down[dy], after);
      const V between = left * before + fx * after;
      before = after;
      if (dy > 0) {
        const V values = upper * above[dx] + lower * between;
        float* target = out + (dx * side + dy - 1) * job.pixels();
        if (pixels == 0xffff) {
          store(values, target);
        } else {
          for (int i = 0; i < kTileColumns; ++i) {
            if (pixels >> i & 1) target[i] = values[i];
          }
        }
      }
      above[dx] = between;
    }
  }
}

// The windows of a tile at one level.
FLOWFUSE_INLINE void look_up_by_matrices(MatrixUnit& unit, const FeatureLookup<float, BFloat16>& job,
                                         const Tile<float>& tile, int level, const MatrixWorkspace& workspace) {
  const auto fits = [](int64_t rows, int64_t columns, int64_t) FLOWFUSE_INLINE_LAMBDA {
    return rows * whole_runs(static_cast<int>(columns)) <= kMostProducts;
  };
  visit_footprints(job, tile, level, fits, [&](const Footprint& footprint, int begin, int end) FLOWFUSE_INLINE_LAMBDA {
    multiply_footprint(unit, job, tile, level, footprint, workspace);
    for (int row = 0; row < tile.rows; ++row) {
      uint32_t pixels = 0;  // those of the footprint
      for (int i = 0; i < tile.columns; ++i) {
        const int index = row * kTileColumns + i;
        if (index >= begin && index < end) pixels |= 1u << i;
      }
      if (pixels != 0) write_row(job, tile, level, footprint, row, pixels, workspace.products);
    }
  });
}

}  // namespace flowfuse

#endif
