// Look-ups on demand: products of features are made where windows ask for them.
//
// A product of C channels is 2 C operations on 2 C values: what decides is how often a value that was loaded is used.
// A tile of pixels has windows that overlap, since flow is smooth. So the cells of the map are taken four at a time,
// 2 x 2, each group for all pixels of the tile that have a tap in it (found from two bit masks), and small dense
// products of 4 cells and a few pixels are made in registers. It holds for scattered windows too: groups then serve
// fewer pixels. The gradients go the same way, f1's in tasks that own channels, so that no sum depends on threads.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/lookup.h"
#include "tensors.h"

namespace flowfuse::cpu {

using torch::headeronly::BFloat16;

constexpr int kMostCells = 512;        // rows or columns of a footprint
constexpr int kMostEmpty = 4;          // cells of a footprint for each tap in it
constexpr int64_t kChannelBytes = 64;  // channels are padded to whole vectors of every variant

template <class T, class F>
struct FeatureLevel {
  const F* f1;  // [B, rows, columns, channels]
  T* grad;
  int64_t batch_stride, rows, columns;
};

// Features F are float, double or BFloat16, sums T are float or double.
template <class T, class F>
struct FeatureLookup : Lookup<T> {
  FeatureLevel<T, F> maps[kMaxLevels];
  const F* f0;  // [B, height, width, channels]
  T* grad_f0;
  const F* zeros;  // [channels]: features outside the map
  int64_t f0_stride, channels;
  T scale;
};

// The cells that hold taps of some pixels of a tile. Pixel i has a tap in row `top + r` where bit i of down[r] is set,
// in column `left + c` where that of across[c] is.
struct Footprint {
  int64_t top, left;
  int rows, columns;
  uint64_t down[kMostCells + 1], across[kMostCells + 1];  // one more, empty: groups begin at every other cell
};

// Of the pixels [first, last) of a tile; false where it would be too large or mostly empty.
template <class T>
FLOWFUSE_INLINE bool compute_footprint(const PixelTile<T>& tile, int radius, int64_t rows, int64_t columns, int first,
                                       int last, Footprint& cells) {
  int64_t top = rows, bottom = 0, left = columns, right = 0, taps = 0;
  for (int i = first; i < last; ++i) {
    if (!tile.has(i)) continue;
    const Window<T>& window = tile.windows[i];
    const TapRange range = taps_inside(window, radius, rows, columns);
    if (range.x0 >= range.x1 || range.y0 >= range.y1) continue;
    taps += (range.x1 - range.x0) * (range.y1 - range.y0);
    if (window.y + range.y0 < top) top = window.y + range.y0;
    if (window.y + range.y1 > bottom) bottom = window.y + range.y1;
    if (window.x + range.x0 < left) left = window.x + range.x0;
    if (window.x + range.x1 > right) right = window.x + range.x1;
  }
  cells.top = cells.left = 0;
  cells.rows = cells.columns = 0;
  if (taps == 0) return true;
  if (bottom - top > kMostCells || right - left > kMostCells) return false;
  if ((bottom - top) * (right - left) > kMostEmpty * taps) return false;
  cells.top = top;
  cells.left = left;
  cells.rows = static_cast<int>(bottom - top);
  cells.columns = static_cast<int>(right - left);
  for (int r = 0; r <= cells.rows; ++r) cells.down[r] = 0;
  for (int c = 0; c <= cells.columns; ++c) cells.across[c] = 0;
  for (int i = first; i < last; ++i) {
    if (!tile.has(i)) continue;
    const Window<T>& window = tile.windows[i];
    const TapRange range = taps_inside(window, radius, rows, columns);
    if (range.x0 >= range.x1 || range.y0 >= range.y1) continue;
    const uint64_t bit = uint64_t{1} << i;
    for (int dy = range.y0; dy < range.y1; ++dy) cells.down[window.y + dy - top] |= bit;
    for (int dx = range.x0; dx < range.x1; ++dx) cells.across[window.x + dx - left] |= bit;
  }
  return true;
}

// Calls visit(y, x, pixels) for the groups of cells (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1) of a level in which
// some pixels, bits of a mask, have a tap. Pixels whose windows lie far apart are taken apart, until a footprint fits;
// that of one pixel must.
template <class T, class F, class Visit>
FLOWFUSE_INLINE void visit_groups(const FeatureLookup<T, F>& params, const PixelTile<T>& tile, int level,
                                  const Visit& visit) {
  const FeatureLevel<T, F>& map = params.maps[level];
  Footprint cells;
  int first[8] = {0}, last[8] = {kTilePixels};  // halved at most six times
  for (int waiting = 1; waiting > 0;) {
    const int begin = first[--waiting], end = last[waiting];
    if (!compute_footprint(tile, params.radius, map.rows, map.columns, begin, end, cells)) {
      const int middle = (begin + end) / 2;
      first[waiting] = middle;
      last[waiting++] = end;
      first[waiting] = begin;
      last[waiting++] = middle;
      continue;
    }
    for (int r = 0; r < cells.rows; r += 2) {
      for (int c = 0; c < cells.columns; c += 2) {
        const uint64_t pixels = (cells.down[r] | cells.down[r + 1]) & (cells.across[c] | cells.across[c + 1]);
        if (pixels != 0) visit(cells.top + r, cells.left + c, pixels);
      }
    }
  }
}

// Of the four cells of a group: their place among the cells of a map, or -1 outside of it.
template <class T, class F>
FLOWFUSE_INLINE int64_t cell_of_group(const FeatureLevel<T, F>& map, int64_t y, int64_t x, int k) {
  const int64_t row = y + k / 2, column = x + k % 2;
  return row < map.rows && column < map.columns ? row * map.columns + column : -1;
}

template <class T, class F>
FLOWFUSE_INLINE void load_cells(const FeatureLookup<T, F>& params, const PixelTile<T>& tile, int level, int64_t y,
                                int64_t x, const F** cells) {
  const FeatureLevel<T, F>& map = params.maps[level];
  for (int k = 0; k < 4; ++k) {
    const int64_t cell = cell_of_group(map, y, x, k);
    cells[k] = cell < 0 ? params.zeros : map.f1 + tile.b * map.batch_stride + cell * params.channels;
  }
}

// Where the pixels of a tile have their taps and features, for loops that should not work it out again.
struct Places {
  int64_t taps[kTilePixels];      // where the tap at cell (0, 0) of the level would lie among the blocks of the tile
  int64_t features[kTilePixels];  // in the feature map of an item
};

template <class T, class F>
FLOWFUSE_INLINE void compute_places(const FeatureLookup<T, F>& params, const PixelTile<T>& tile, Places& places) {
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const Window<T>& window = tile.windows[i];
    places.taps[i] = params.tap_at(i, params.first_tap() - window.y * params.stride() - window.x);
    places.features[i] = tile.pixel(params, i) * params.channels;
  }
}

template <class V, class T>
FLOWFUSE_INLINE void multiply_add(const T*, const V& a, const V& b, V& sum) {
  sum += a * b;
}

#if FLOWFUSE_BFLOAT16_PRODUCTS
// Adds the products of pairs of bfloat16 to float sums; only under avx512_bf16. (The instruction takes denormals as 0.)
template <class V>
FLOWFUSE_INLINE void multiply_add(const BFloat16*, const V& a, const V& b, V& sum) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#endif

// Products of the features at four cells and at the pixels of a mask, into the blocks of those pixels, `at` behind the
// places of their taps at cell (0, 0). What lies outside the map and on the border of a block afterwards has no meaning.
template <int kBytes, class T, class F>
FLOWFUSE_INLINE void multiply_group(const FeatureLookup<T, F>& params, const F* f0, const Places& places,
                                    const F* const* cells, int64_t at, uint64_t pixels, T* taps) {
  constexpr int kTogether = kBytes == 64 ? 4 : 2;  // pixels: with their sums the registers are full
  constexpr int kSums = 4 * kTogether, kAll = kLanes<T, kBytes>;
  constexpr int kStep = kBytes / static_cast<int>(sizeof(F));
  using V = Vector<T, kBytes>;
  const int64_t channels = params.channels;
  const int down = params.stride() * kTileColumns;
  while (pixels != 0) {
    int pixel[kTogether];
    const F* features[kTogether];
    for (int j = 0; j < kTogether; ++j) {  // the last one again where there are no more
      pixel[j] = pixels != 0 ? __builtin_ctzll(pixels) : pixel[j - 1];
      pixels &= pixels - 1;
      features[j] = f0 + places.features[pixel[j]];
    }
    V sums[kSums] = {};
    for (int64_t c = 0; c < channels; c += kStep) {
      V cell[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) load(cells[k] + c, cell[k]);
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        V feature;
        load(features[j] + c, feature);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) multiply_add(cells[k], feature, cell[k], sums[4 * j + k]);
      }
    }
    alignas(64) T values[kSums];
#pragma GCC unroll 8
    for (int i = 0; i < kSums; i += kAll) {
      V totals;
      lane_sums<T, kBytes>(sums + i, totals);
      totals *= params.scale;
      store(totals, values + i);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) {
      T *upper = taps + (places.taps[pixel[j]] + at), *lower = upper + down;
      upper[0] = values[4 * j];
      upper[kTileColumns] = values[4 * j + 1];
      lower[0] = values[4 * j + 2];
      lower[kTileColumns] = values[4 * j + 3];
    }
  }
}

// Taps of a tile, of which the windows are those of the level.
template <int kBytes, class T, class F>
FLOWFUSE_INLINE void compute_taps(const FeatureLookup<T, F>& params, const PixelTile<T>& tile, int level, T* taps) {
  const FeatureLevel<T, F>& map = params.maps[level];
  const F* f0 = params.f0 + tile.b * params.f0_stride;
  Places places;
  compute_places(params, tile, places);
  visit_groups(params, tile, level, [&](int64_t y, int64_t x, uint64_t pixels) FLOWFUSE_INLINE_LAMBDA {
    const F* cells[4];
    load_cells(params, tile, level, y, x, cells);
    multiply_group<kBytes>(params, f0, places, cells, (y * params.stride() + x) * kTileColumns, pixels, taps);
  });
  clear_outside(params, tile, map.rows, map.columns, taps);
}

// Calls visit(F{}, dtype of the features) with the type in which the products of a look-up are made.
template <class T, class Visit>
void with_products(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Visit& visit) {
  if constexpr (std::is_same_v<T, double>) {
    visit(double{}, ScalarType::Double);
  } else {
#if FLOWFUSE_BFLOAT16_PRODUCTS
    const auto narrow = [](const Tensor& map) { return map.scalar_type() == ScalarType::BFloat16; };
    if (cpu_capability() >= CpuCapability::kAvx512Bf16 && narrow(f0) &&
        std::all_of(f1_levels.begin(), f1_levels.end(), narrow)) {
      return visit(BFloat16{}, ScalarType::BFloat16);
    }
#else
    (void)f0, (void)f1_levels;
#endif
    visit(float{}, ScalarType::Float);
  }
}

// FLOWFUSE_VARIANTS for products of features F, a template parameter.
#if FLOWFUSE_BFLOAT16_PRODUCTS
#define FLOWFUSE_PRODUCT_VARIANTS(F, ...)                                 \
  if constexpr (std::is_same_v<F, ::flowfuse::cpu::BFloat16>) {           \
    [&]() FLOWFUSE_TARGET_AVX512 { FLOWFUSE_VARIANT(64, __VA_ARGS__) }(); \
  } else {                                                                \
    FLOWFUSE_VARIANTS(__VA_ARGS__)                                        \
  }
#else
#define FLOWFUSE_PRODUCT_VARIANTS(F, ...) FLOWFUSE_VARIANTS(__VA_ARGS__)
#endif

// Copies pixels of channels-last maps to others with more or fewer channels; those that are new are 0.
inline void copy_channels(const Tensor& from, const Tensor& to) {
  const int64_t size = static_cast<int64_t>(sizeof_dtype(from.scalar_type()));
  const int64_t from_bytes = from.size(1) * size, to_bytes = to.size(1) * size;
  const int64_t kept = std::min(from_bytes, to_bytes), pixels = from.size(0) * from.size(2) * from.size(3);
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  torch::stable::parallel_for(0, pixels, 256, [&](int64_t first, int64_t last) {
    for (int64_t pixel = first; pixel < last; ++pixel) {
      std::memcpy(target + pixel * to_bytes, source + pixel * from_bytes, static_cast<size_t>(kept));
      std::memset(target + pixel * to_bytes + kept, 0, static_cast<size_t>(to_bytes - kept));
    }
  });
}

// Packed features with zeros up to `channels`.
inline Features in_whole_vectors(const char* op, const Features& map, int64_t channels) {
  if (map.tensor.size(1) == channels) return map;
  const Tensor wider = allocate(op, map.tensor, {map.tensor.size(0), channels, map.rows, map.columns},
                                map.tensor.scalar_type(), MemoryFormat::ChannelsLast);
  copy_channels(map.tensor, wider);
  return {wider, map.batch_stride == 0 ? 0 : channels * map.rows * map.columns, map.rows, map.columns};
}

// Parameters with the tensors that it points into.
template <class T, class F>
struct PreparedLookup {
  FeatureLookup<T, F> params{};
  std::vector<Features> storage;
  Tensor zeros;

  PreparedLookup(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords,
                 int64_t radius, ScalarType dtype) {
    set_coords(params, coords, f1_levels.size(), radius);
    constexpr int64_t multiple = kChannelBytes / int64_t{sizeof(F)};
    params.channels = rounded_up(f0.size(1), multiple);
    params.scale = T(1) / std::sqrt(static_cast<T>(f0.size(1)));
    storage.push_back(in_whole_vectors(op, packed(f0, dtype, MemoryFormat::ChannelsLast), params.channels));
    params.f0 = data<F>(storage[0].tensor);
    params.f0_stride = storage[0].batch_stride;
    zeros = allocate(op, f0, {params.channels}, dtype);
    torch::stable::zero_(zeros);
    params.zeros = data<F>(zeros);
    for (size_t level = 0; level < f1_levels.size(); ++level) {
      storage.push_back(
          in_whole_vectors(op, packed(f1_levels[level], dtype, MemoryFormat::ChannelsLast), params.channels));
      const Features& f1 = storage.back();
      params.maps[level] = {data<F>(f1.tensor), nullptr, f1.batch_stride, f1.rows, f1.columns};
    }
  }
};

}  // namespace flowfuse::cpu
