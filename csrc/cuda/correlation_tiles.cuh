// Look-ups on demand take pixels a tile at a time. Here: tiles, how features are read, and what launchers need. Products
// are made by the tensor cores (correlation_matrix.cuh), or for float64, for float32 in full precision and for features
// that no vector load may read, by the others (correlation_products.cuh).
//
// The block tile is 8 x 4 pixels, the warp tile 4 x 2 of these, with the cells of a level that their windows cover.
#pragma once

#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>

#include "cuda/lookup.cuh"

namespace flowfuse::cuda {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kTileColumns = 8, kTileRows = 4;
constexpr int kPixels = kTileColumns * kTileRows;  // of a block tile: a lane each when results are stored
constexpr int kTileThreads = 128;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int kWarpPixels = kPixels / kTileWarps;  // of a warp tile: 4 x 2
constexpr size_t kTapBytes = 21 * 1024;            // of a block tile's taps: with all else below 48 KiB

static_assert(kWarpPixels == 8 && kTileColumns == 8 && kTileRows == 4, "spot_of numbers pixels by warps of 4 x 2");

// A level of f1: [B, rows, columns, C].
template <class F>
struct FeatureMap {
  const F* values;
  int64_t batch_stride, rows, columns;
};

// The windows of all levels around the pixels of f0 [B, height, width, C]. T: the type of sums, F of features.
template <class T, class F = T>
struct FeatureLookup : Lookup {
  FeatureMap<F> maps[kMaxLevels];
  const F* f0;
  int64_t f0_stride, channels, height, width;
  int64_t across, tiles;  // tiles in a row, and of an item
  int part_size, parts;   // columns of values in a part of a window, and parts of a window
  bool aligned;           // 16 bytes of channels can be loaded at once, of all maps
  T scale;
};

// Cells of a map: columns [x0, x1) and rows [y0, y1).
struct Box {
  int64_t x0, y0, x1, y1;

  __device__ __forceinline__ bool empty() const { return x0 >= x1; }
  __device__ __forceinline__ int64_t width() const { return empty() ? 0 : x1 - x0; }
  __device__ __forceinline__ int64_t height() const { return empty() ? 0 : y1 - y0; }
};

constexpr int64_t kFar = int64_t{1} << 60;

__device__ __forceinline__ Box empty_box() { return {kFar, kFar, -kFar, -kFar}; }

__device__ __forceinline__ Box enclosing(const Box& a, const Box& b) {
  return {smaller(a.x0, b.x0), smaller(a.y0, b.y0), larger(a.x1, b.x1), larger(a.y1, b.y1)};
}

// The cells in the map under the taps at (x, y), `across` by `down`.
template <class F>
__device__ __forceinline__ Box cells_under(const FeatureMap<F>& map, int64_t x, int64_t y, int across, int down) {
  const Box box{larger<int64_t>(x, 0), larger<int64_t>(y, 0), smaller(x + across, map.columns),
                smaller(y + down, map.rows)};
  return box.x0 < box.x1 && box.y0 < box.y1 ? box : empty_box();
}

// The box around those of all lanes whose numbers differ in the bits below `count`, a power of two.
__device__ __forceinline__ Box enclosing_lanes(Box box, int count) {
  for (int step = 1; step < count; step *= 2) {
    box = enclosing(box, {__shfl_xor_sync(kWholeWarp, box.x0, step), __shfl_xor_sync(kWholeWarp, box.y0, step),
                          __shfl_xor_sync(kWholeWarp, box.x1, step), __shfl_xor_sync(kWholeWarp, box.y1, step)});
  }
  return box;
}

// Pixel i of a tile, in the order of the warps that own them.
struct Spot {
  int64_t pixel;  // of the item
  bool there;     // and not beyond its edge
};

template <class T, class F>
__device__ __forceinline__ Spot spot_of(const FeatureLookup<T, F>& params, int64_t tile, int i) {
  const int64_t x = tile % params.across * kTileColumns + i / 8 % 2 * 4 + i % 4;
  const int64_t y = tile / params.across * kTileRows + i / 16 * 2 + i / 4 % 2;
  return {y * params.width + x, x < params.width && y < params.height};
}

template <class T, class F>
__device__ __forceinline__ Window<T> window_of(const FeatureLookup<T, F>& params, int64_t b, const Spot& spot,
                                               int level) {
  const FeatureMap<F>& map = params.maps[level];
  if (!spot.there) return {Reach::kOutside, 0, 0, T(0), T(0)};
  return params.template window<T>(b, spot.pixel, level, map.rows, map.columns);
}

// A part of the windows of a tile on a level: the taps [first, first + columns) of each along x.
struct WindowPart {
  int64_t b, number;  // item and tile
  int level, first, columns, stride;
};

// Taps of a pixel lie an odd number apart: those of all pixels are then read from different banks.
FLOWFUSE_INLINE int tap_stride(int columns, int side) { return columns * side | 1; }

// Number `index` of the parts of the windows of `items` and their tiles [first_tile, first_tile + tiles).
template <class T, class F>
__device__ __forceinline__ WindowPart part_of(const FeatureLookup<T, F>& params, int64_t index, int64_t items,
                                              int64_t first_tile, int64_t tiles) {
  const int64_t each = items * tiles;
  const int part = static_cast<int>(index / each) % params.parts;
  const int first = part * params.part_size, columns = smaller(params.part_size, params.value_side() - first) + 1;
  return {index % each / tiles,
          first_tile + index % tiles,
          static_cast<int>(index / each) / params.parts,
          first,
          columns,
          tap_stride(columns, params.tap_side())};
}

// Values of a part of the windows from its taps: a lane has a pixel, a warp some columns.
template <class T, class F>
__device__ __forceinline__ void store_values(const FeatureLookup<T, F>& params, const WindowPart& part,
                                             const Window<T>* windows, const T* taps, T* output) {
  const int i = static_cast<int>(threadIdx.x) % kWarp;
  const Spot spot = spot_of(params, part.number, i);
  if (!spot.there) return;
  const Window<T> window = windows[i];
  const Corners<T> corners = corners_of(window);
  const T missing = window.reach == Reach::kMissing ? static_cast<T>(NAN) : T(0);
  for (int dx = static_cast<int>(threadIdx.x) / kWarp; dx < part.columns - 1; dx += kTileWarps) {
    const T* near = taps + i * part.stride + dx * params.tap_side();
    T* out = output + params.values_at(part.b, spot.pixel, part.level) +
             (part.first + dx) * params.value_side() * params.pixels;
    for (int dy = 0; dy < params.value_side(); ++dy) {
      *out = window.reach == Reach::kNear ? combined_value(corners, near, near + params.tap_side(), dy) : missing;
      out += params.pixels;
    }
  }
}

// ---- what launchers need -------------------------------------------------------------------------

// A look-up in the type F of features, with the tensors that it points into.
template <class T, class F>
struct PreparedLookup {
  FeatureLookup<T, F> params{};
  std::vector<Features> storage;

  PreparedLookup(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& points, int64_t radius,
                 ScalarType dtype) {
    static_cast<Lookup&>(params) = lookup_of(points, f1_levels.size(), radius);
    params.channels = f0.size(1);
    params.height = f0.size(2);
    params.width = f0.size(3);
    params.across = (params.width + kTileColumns - 1) / kTileColumns;
    params.tiles = (params.height + kTileRows - 1) / kTileRows * params.across;
    params.scale = T(1) / std::sqrt(static_cast<T>(params.channels));
    params.aligned = params.channels * static_cast<int64_t>(sizeof(F)) % 16 == 0;
    const auto packed_map = [&](const Tensor& map) {
      storage.push_back(packed(map, dtype, MemoryFormat::ChannelsLast));
      params.aligned = params.aligned && reinterpret_cast<uintptr_t>(data<F>(storage.back().tensor)) % 16 == 0;
      return storage.back();
    };
    const Features first = packed_map(f0);
    params.f0 = data<F>(first.tensor);
    params.f0_stride = first.batch_stride;
    for (size_t level = 0; level < f1_levels.size(); ++level) {
      const Features f1 = packed_map(f1_levels[level]);
      params.maps[level] = {data<F>(f1.tensor), f1.batch_stride, f1.rows, f1.columns};
    }
    // As many columns of a window as fit, two at least, in parts of about the same size.
    const int size = 2 * params.radius + 1, side = size + 1;
    const int columns = std::max(2, static_cast<int>(kTapBytes / (kPixels * sizeof(T)) - 1) / side);
    const int most = std::min(columns, side) - 1;
    params.parts = (size + most - 1) / most;
    params.part_size = (size + params.parts - 1) / params.parts;
    params.parts = (size + params.part_size - 1) / params.part_size;
  }
};

// The type of features of a FeatureLookup.
template <class Params>
using feature_type = std::decay_t<decltype(*std::declval<Params>().f0)>;

// Prepares a look-up in the arithmetic that fits and calls visit(params, std::bool_constant: by the tensor cores).
// Features that are all of one half type are taken as they are; but for gradients, which the tensor cores multiply in
// bfloat16, float16 as float32. Other products of float32 the tensor cores do not make where they are to be `exact`.
template <bool kGradients, class Visit>
void with_arithmetic(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& points, int64_t radius,
                     bool exact, const Visit& visit) {
  const ScalarType dtype = f0.scalar_type();
  const bool same = std::all_of(f1_levels.begin(), f1_levels.end(),
                                [&](const Tensor& level) { return level.scalar_type() == dtype; });
  const bool bfloat16 = same && dtype == ScalarType::BFloat16, half = same && dtype == ScalarType::Half;
  const auto by_matrices = [&](auto zero, ScalarType as) {
    const PreparedLookup<float, decltype(zero)> lookup(f0, f1_levels, points, radius, as);
    if (lookup.params.aligned) visit(lookup.params, std::true_type{});
    return lookup.params.aligned;
  };
  if (sum_dtype(dtype) == ScalarType::Double) {
    visit(PreparedLookup<double, double>(f0, f1_levels, points, radius, dtype).params, std::false_type{});
    return;
  }
  if (bfloat16 && by_matrices(BFloat16{}, dtype)) return;
  if constexpr (!kGradients) {
    if (half && by_matrices(Half{}, dtype)) return;
  }
  const bool in_parts = bfloat16 || (kGradients && half) || !exact;  // without loss, or as precise as the result
  if (in_parts && by_matrices(float{}, ScalarType::Float)) return;
  visit(PreparedLookup<float, float>(f0, f1_levels, points, radius, ScalarType::Float).params, std::false_type{});
}

}  // namespace flowfuse::cuda
