// Look-ups on demand take pixels a tile at a time. Here: tiles, how features are read, and what launchers need. The
// products are in correlation_products.cuh.
//
// In the words of matrix products: the block tile is 8 x 4 pixels with the cells of a level that their windows cover
// (the footprint), by all channels. The warp tile is 4 x 2 of these pixels with up to 192 of the cells (kMostGroups
// groups of 32). A stage is 8 channels of the block tile in shared memory, two of them in turns, filled by asynchronous
// copies. A lane's fragment is 8 pixels by up to 6 cells: 48 sums in registers.
#pragma once

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
constexpr int kStaged = 2;                         // quads of channels in a stage: a sector of each cell
constexpr int kSlots = 312;                        // cells in a stage: 22 x 14 of the smooth case, padding included
constexpr int kPadding = 4;                        // quads: two quads of four cells each are stored to different banks
constexpr int64_t kMostProducts = 6;     // for each that is asked for; beyond that, pixel by pixel is less work
constexpr size_t kTapBytes = 21 * 1024;  // of a block tile's taps: with all else below 48 KiB

// Groups of 32 cells that a warp multiplies at a time: 48 sums a thread, and 128 registers in all.
template <class T>
constexpr int kMostGroups = std::is_same_v<T, double> ? 2 : 6;

// Blocks on a multiprocessor, at least.
template <class T>
constexpr int kTileBlocks = std::is_same_v<T, double> ? 3 : 4;

static_assert(kWarpPixels == 8 && kTileColumns == 8 && kTileRows == 4, "spot_of numbers pixels by warps of 4 x 2");

enum class Kind : int { kFloat, kHalf, kBFloat16, kDouble };

// A level of f1: [B, rows, columns, C].
struct FeatureMap {
  const void* values;
  int64_t batch_stride, rows, columns;
  Kind kind;
  bool aligned;  // quads of channels can be loaded at once
};

// The windows of all levels around the pixels of f0 [B, height, width, C].
template <class T>
struct FeatureLookup : Lookup {
  FeatureMap maps[kMaxLevels];
  const T* f0;
  int64_t f0_stride, channels, height, width;
  int64_t across, tiles;  // tiles in a row, and of an item
  int part_size, parts;   // columns of values in a part of a window, and parts of a window
  bool f0_aligned;
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
__device__ __forceinline__ Box cells_under(const FeatureMap& map, int64_t x, int64_t y, int across, int down) {
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

template <class T>
__device__ __forceinline__ Spot spot_of(const FeatureLookup<T>& params, int64_t tile, int i) {
  const int64_t x = tile % params.across * kTileColumns + i / 8 % 2 * 4 + i % 4;
  const int64_t y = tile / params.across * kTileRows + i / 16 * 2 + i / 4 % 2;
  return {y * params.width + x, x < params.width && y < params.height};
}

template <class T>
__device__ __forceinline__ Window<T> window_of(const FeatureLookup<T>& params, int64_t b, const Spot& spot, int level) {
  const FeatureMap& map = params.maps[level];
  if (!spot.there) return {Reach::kOutside, 0, 0, T(0), T(0)};
  return params.template window<T>(b, spot.pixel, level, map.rows, map.columns);
}

// Calls visit with a value of the type of a map's features.
template <class T, class Visit>
__device__ __forceinline__ void with_kind(Kind kind, const Visit& visit) {
  if constexpr (std::is_same_v<T, double>) {
    visit(double{});
  } else {
    if (kind == Kind::kHalf) {
      visit(Half{});
    } else if (kind == Kind::kBFloat16) {
      visit(BFloat16{});
    } else {
      visit(float{});
    }
  }
}

// A quad of channels. Where they are not aligned, they are loaded one by one, and 0 beyond the `left` that there are.
template <bool kAligned, class T, class F>
__device__ __forceinline__ Quad<T> load_quad(const F* features, int64_t left) {
  constexpr int kCount = Quad<T>::kCount;
  Quad<T> quad;
  if constexpr (kAligned) {
    struct alignas(sizeof(F) * kCount) Pack {
      F values[kCount];
    };
    const Pack pack = *reinterpret_cast<const Pack*>(features);
    for (int c = 0; c < kCount; ++c) quad.values[c] = static_cast<T>(pack.values[c]);
  } else {
    for (int c = 0; c < kCount; ++c) quad.values[c] = c < left ? static_cast<T>(features[c]) : T(0);
  }
  return quad;
}

// The same where that is known when it runs.
template <class T, class F>
__device__ __forceinline__ Quad<T> load_quad(const F* features, int64_t left, bool aligned) {
  return aligned && left > 0 ? load_quad<true, T>(features, left) : load_quad<false, T>(features, left);
}

// A tile of an item, and the taps [first, first + columns) of its windows on a level: a part of them.
template <class T>
struct BlockTile {
  int64_t b, number, left, top;  // the last two: first cell of the footprint
  int level, first, columns, stride;
  int width, height;  // of the footprint
  const T* f0;        // features of the item
  const void* f1;
  bool copies;  // those of f1 are what is multiplied, as they are
  bool dense;
};

template <class T>
struct TileMemory {
  BlockTile<T> tile;  // not in registers, which hold sums
  Quad<T> cells[2][kStaged][kSlots + kPadding];
  Quad<T> pixels[2][kStaged][kPixels + kPadding];
  Window<T> windows[kPixels];
  Box boxes[kTileWarps];  // of the pixels of each warp
  int taps_inside[kTileWarps];
  int64_t cells_at[kSlots];    // first channel in the item's map; -1 for a slot that holds no cell
  int64_t pixels_at[kPixels];  // and in f0; -1 beyond the edge
  int origins[kPixels][2];     // first tap of a pixel in the footprint
  T taps[1];                   // [kPixels][stride], and what the launch adds
};

// Taps of a pixel lie an odd number apart: those of all pixels are then read from different banks.
FLOWFUSE_INLINE int tap_stride(int columns, int side) { return columns * side | 1; }

template <class T>
__device__ __forceinline__ void load_tile(const FeatureLookup<T>& params, int64_t b, int64_t number, int level,
                                          int part, TileMemory<T>& memory) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int i = warp * kWarpPixels + lane % kWarpPixels;
  const int first = part * params.part_size, columns = smaller(params.part_size, params.value_side() - first) + 1;
  const FeatureMap& map = params.maps[level];
  const Spot spot = spot_of(params, number, i);
  const Window<T> window = window_of(params, b, spot, level);
  Box box = empty_box();
  if (window.reach == Reach::kNear) box = cells_under(map, window.x + first, window.y, columns, params.tap_side());
  const bool any = !box.empty();
  int inside = static_cast<int>(box.width() * box.height());
  box = enclosing_lanes(box, kWarpPixels);
  for (int step = 1; step < kWarpPixels; step *= 2) inside += __shfl_xor_sync(kWholeWarp, inside, step);
  if (lane < kWarpPixels) {
    memory.windows[i] = window;
    memory.pixels_at[i] = spot.there ? spot.pixel * params.channels : -1;
  }
  if (lane == 0) {
    memory.boxes[warp] = box;
    memory.taps_inside[warp] = inside;
  }
  __syncthreads();
  Box footprint = empty_box();
  int64_t products = 0, asked = 0, widest = 0, cells = 0;
  for (int other = 0; other < kTileWarps; ++other) {
    const Box& theirs = memory.boxes[other];
    footprint = enclosing(footprint, theirs);
    products += (theirs.width() * theirs.height() + kWarp - 1) / kWarp * kWarp * kWarpPixels;
    asked += memory.taps_inside[other];
    widest = larger(widest, theirs.width());
    cells += theirs.width() * theirs.height();
  }
  // The footprint is staged as a whole: boxes that are tight but lie far from each other would leave it mostly empty.
  const bool dense = products <= kMostProducts * asked && footprint.width() * footprint.height() <= cells &&
                     widest <= kMostGroups<T> * kWarp && footprint.width() <= kSlots - kWarpPixels;
  if (lane < kWarpPixels) {
    const bool used = dense && any;
    memory.origins[i][0] = used ? static_cast<int>(window.x + first - footprint.x0) : 1 << 20;
    memory.origins[i][1] = used ? static_cast<int>(window.y - footprint.y0) : 1 << 20;
  }
  if (threadIdx.x == 0) {
    BlockTile<T>& tile = memory.tile;
    tile.b = b;
    tile.number = number;
    tile.left = footprint.x0;
    tile.top = footprint.y0;
    tile.level = level;
    tile.first = first;
    tile.columns = columns;
    tile.stride = tap_stride(columns, params.tap_side());
    tile.width = static_cast<int>(footprint.width());
    tile.height = static_cast<int>(footprint.height());
    tile.f0 = params.f0 + b * params.f0_stride;
    with_kind<T>(map.kind, [&](auto zero) {
      using F = decltype(zero);
      tile.f1 = static_cast<const F*>(map.values) + b * map.batch_stride;
      tile.copies = std::is_same_v<F, T> && map.aligned;
    });
    tile.dense = dense;
  }
  __syncthreads();
}

// ---- what launchers need -------------------------------------------------------------------------

inline Kind kind_of(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Half: return Kind::kHalf;
    case ScalarType::BFloat16: return Kind::kBFloat16;
    case ScalarType::Double: return Kind::kDouble;
    default: return Kind::kFloat;
  }
}

// Whether quads of channels, `count` values of `bytes` each, can be loaded at once.
inline bool loads_quads(const Tensor& features, int64_t channels, int64_t count, int64_t bytes) {
  const auto address = reinterpret_cast<uintptr_t>(features.const_data_ptr());
  return channels % count == 0 && address % static_cast<uintptr_t>(count * bytes) == 0;
}

template <class T>
size_t tile_bytes(const FeatureLookup<T>& params) {
  const int side = 2 * params.radius + 2;
  return sizeof(TileMemory<T>) + kPixels * tap_stride(params.part_size + 1, side) * sizeof(T);
}

// A look-up with the tensors that it points into.
template <class T>
struct PreparedLookup {
  FeatureLookup<T> params{};
  std::vector<Features> storage;

  PreparedLookup(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& points, int64_t radius) {
    static_cast<Lookup&>(params) = lookup_of(points, f1_levels.size(), radius);
    constexpr int64_t kCount = Quad<T>::kCount;
    params.channels = f0.size(1);
    params.height = f0.size(2);
    params.width = f0.size(3);
    params.across = (params.width + kTileColumns - 1) / kTileColumns;
    params.tiles = (params.height + kTileRows - 1) / kTileRows * params.across;
    params.scale = T(1) / std::sqrt(static_cast<T>(params.channels));
    storage.push_back(packed(f0, sum_dtype(f0.scalar_type()), MemoryFormat::ChannelsLast));
    params.f0 = data<T>(storage[0].tensor);
    params.f0_stride = storage[0].batch_stride;
    params.f0_aligned = loads_quads(storage[0].tensor, params.channels, kCount, sizeof(T));
    for (size_t level = 0; level < f1_levels.size(); ++level) {
      storage.push_back(packed(f1_levels[level], f1_levels[level].scalar_type(), MemoryFormat::ChannelsLast));
      const Features& f1 = storage.back();
      params.maps[level] = {
          f1.tensor.const_data_ptr(),
          f1.batch_stride,
          f1.rows,
          f1.columns,
          kind_of(f1.tensor.scalar_type()),
          loads_quads(f1.tensor, params.channels, kCount, static_cast<int64_t>(sizeof_dtype(f1.tensor.scalar_type())))};
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

}  // namespace flowfuse::cuda
