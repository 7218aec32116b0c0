// Products of features on demand, for the tiles of pixels of a look-up.
//
// A product of C channels takes two values for every multiply-add, so what decides is how often a value that was
// loaded is used. A block has a tile of 8 x 4 pixels and one level in hand. Flow is smooth: the windows of the tile
// overlap, and the box around them (its footprint) goes through shared memory, 8 channels at a time, the next 8 on
// their way while these are multiplied. Each warp makes the products of 4 x 2 of the pixels with the cells of their own
// box alone: a lane has 8 pixels and up to 6 cells, so 8 + 6 loads of 16 bytes serve 4 * 48 multiply-adds.
// Windows of radius 4 that lie as the pixels do have 10 x 10 cells in a box of 13 x 11: 70 % of the products are asked
// for, 83 % on the next level, where windows lie half as far apart.
//
// Where windows are scattered, boxes are mostly empty. Then a warp takes pixel by pixel: f0 in registers, f1 from
// global memory, four multiply-adds a load. Windows of many columns are taken in parts, a few columns each.
#pragma once

#include <cmath>
#include <type_traits>
#include <vector>

#include "cuda/lookup.cuh"

namespace flowfuse {

using torch::headeronly::BFloat16;
using torch::headeronly::Half;

constexpr int kTileColumns = 8, kTileRows = 4;
constexpr int kPixels = kTileColumns * kTileRows;  // of a tile: a lane each when results are stored
constexpr int kTileThreads = 128;
constexpr int kTileWarps = kTileThreads / kWarp;
constexpr int kOwned = kPixels / kTileWarps;  // pixels of a warp: 4 x 2
constexpr int kStaged = 2;                    // quads of channels staged at a time: a sector of each cell
constexpr int kSlots = 312;                   // cells staged at a time: 22 x 14 of the smooth case, padding included
constexpr int kPadding = 4;                   // quads: two quads of four cells each are stored to different banks
constexpr int64_t kMostEmpty = 4;             // products made for each that is asked for
constexpr size_t kTapBytes = 21 * 1024;       // of a tile's taps: with all else below 48 KiB, four blocks on an SM

// Groups of 32 cells that a warp multiplies at a time: 48 sums a thread, and 128 registers in all.
template <class T>
constexpr int kMostGroups = std::is_same_v<T, double> ? 2 : 6;

static_assert(kOwned == 8 && kTileColumns == 8 && kTileRows == 4, "spot_of numbers pixels by warps of 4 x 2");

enum class Kind : int { kFloat, kHalf, kBFloat16, kDouble };

// A level of f1: [B, rows, columns, C].
struct Map {
  const void* values;
  int64_t batch_stride, rows, columns;
  Kind kind;
  bool aligned;  // quads of channels can be loaded at once
};

// The windows of all levels around the pixels of f0 [B, height, width, C].
template <class T>
struct FeatureLookup : Lookup {
  Map maps[kMaxLevels];
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

__device__ __forceinline__ Box around(const Box& a, const Box& b) {
  return {smaller(a.x0, b.x0), smaller(a.y0, b.y0), larger(a.x1, b.x1), larger(a.y1, b.y1)};
}

// The cells in the map under the taps at (x, y), `across` by `down`.
__device__ __forceinline__ Box cells_under(const Map& map, int64_t x, int64_t y, int across, int down) {
  const Box box{larger<int64_t>(x, 0), larger<int64_t>(y, 0), smaller(x + across, map.columns),
                smaller(y + down, map.rows)};
  return box.x0 < box.x1 && box.y0 < box.y1 ? box : empty_box();
}

// The box around those of all lanes whose numbers differ in the bits below `count`, a power of two.
__device__ __forceinline__ Box around_lanes(Box box, int count) {
  for (int step = 1; step < count; step *= 2) {
    box = around(box, {__shfl_xor_sync(kWholeWarp, box.x0, step), __shfl_xor_sync(kWholeWarp, box.y0, step),
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
__device__ __forceinline__ Spot spot_of(const FeatureLookup<T>& job, int64_t tile, int i) {
  const int64_t x = tile % job.across * kTileColumns + i / 8 % 2 * 4 + i % 4;
  const int64_t y = tile / job.across * kTileRows + i / 16 * 2 + i / 4 % 2;
  return {y * job.width + x, x < job.width && y < job.height};
}

template <class T>
__device__ __forceinline__ Window<T> window_of(const FeatureLookup<T>& job, int64_t b, const Spot& spot, int level) {
  const Map& map = job.maps[level];
  if (!spot.there) return {Reach::kOutside, 0, 0, T(0), T(0)};
  return job.template window<T>(b, spot.pixel, level, map.rows, map.columns);
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

// A quad of channels; beyond the `left` that there are it is 0.
template <class T, class F>
__device__ __forceinline__ Quad<T> load_quad(const F* features, int64_t left, bool aligned) {
  struct alignas(sizeof(F) * Quad<T>::kCount) Pack {
    F values[Quad<T>::kCount];
  };
  Quad<T> quad;
  if (aligned && left > 0) {
    const Pack pack = *reinterpret_cast<const Pack*>(features);
    for (int c = 0; c < Quad<T>::kCount; ++c) quad.values[c] = static_cast<T>(pack.values[c]);
  } else {
    for (int c = 0; c < Quad<T>::kCount; ++c) quad.values[c] = c < left ? static_cast<T>(features[c]) : T(0);
  }
  return quad;
}

// A tile of an item, and the taps [first, first + columns) of its windows on a level: a part of them.
struct Tile {
  int64_t b, number, left, top;  // the last two: first cell of the footprint
  int level, first, columns, stride;
  int width, height;  // of the footprint
  bool dense;
};

template <class T>
struct TileMemory {
  Tile tile;  // not in registers, which hold sums
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
__device__ __forceinline__ void take_tile(const FeatureLookup<T>& job, int64_t b, int64_t number, int level, int part,
                                          TileMemory<T>& memory) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int i = warp * kOwned + lane % kOwned;
  const int first = part * job.part_size, columns = smaller(job.part_size, job.size() - first) + 1;
  const Map& map = job.maps[level];
  const Spot spot = spot_of(job, number, i);
  const Window<T> window = window_of(job, b, spot, level);
  Box box = empty_box();
  if (window.reach == Reach::kNear) box = cells_under(map, window.x + first, window.y, columns, job.side());
  const bool any = !box.empty();
  int inside = static_cast<int>(box.width() * box.height());
  box = around_lanes(box, kOwned);
  for (int step = 1; step < kOwned; step *= 2) inside += __shfl_xor_sync(kWholeWarp, inside, step);
  if (lane < kOwned) {
    memory.windows[i] = window;
    memory.pixels_at[i] = spot.there ? spot.pixel * job.channels : -1;
  }
  if (lane == 0) {
    memory.boxes[warp] = box;
    memory.taps_inside[warp] = inside;
  }
  __syncthreads();
  Box footprint = empty_box();
  int64_t products = 0, asked = 0, widest = 0;
  for (int other = 0; other < kTileWarps; ++other) {
    const Box& theirs = memory.boxes[other];
    footprint = around(footprint, theirs);
    products += (theirs.width() * theirs.height() + kWarp - 1) / kWarp * kWarp * kOwned;
    asked += memory.taps_inside[other];
    widest = larger(widest, theirs.width());
  }
  const bool dense = products <= kMostEmpty * asked && widest <= kMostGroups<T> * kWarp &&
                     footprint.width() <= kSlots - kOwned;
  if (lane < kOwned) {
    const bool used = dense && any;
    memory.origins[i][0] = used ? static_cast<int>(window.x + first - footprint.x0) : 1 << 20;
    memory.origins[i][1] = used ? static_cast<int>(window.y - footprint.y0) : 1 << 20;
  }
  if (threadIdx.x == 0) {
    memory.tile = {b,       number,
                   footprint.x0, footprint.y0,
                   level,   first,
                   columns, tap_stride(columns, job.side()),
                   static_cast<int>(footprint.width()), static_cast<int>(footprint.height()), dense};
  }
  __syncthreads();
}

// Copies the quads of channels from `channel` on of the tile's pixels and of the cells in the first `slots` slots.
template <class T>
__device__ __forceinline__ void stage(const FeatureLookup<T>& job, int64_t channel, int slots, int buffer,
                                      TileMemory<T>& memory) {
  constexpr int kStep = kTileThreads / kStaged;
  const Map& map = job.maps[memory.tile.level];
  const int part = static_cast<int>(threadIdx.x) % kStaged, first = static_cast<int>(threadIdx.x) / kStaged;
  const int64_t c = channel + part * Quad<T>::kCount, left = job.channels - c;
  const T* f0 = job.f0 + memory.tile.b * job.f0_stride + c;
  for (int i = first; i < kPixels; i += kStep) {
    const int64_t at = memory.pixels_at[i];
    Quad<T>* target = &memory.pixels[buffer][part][i];
    if (job.f0_aligned && at >= 0 && left > 0) {
      copy_async(target, reinterpret_cast<const Quad<T>*>(f0 + at));
    } else {
      *target = load_quad<T>(f0 + at, at < 0 ? 0 : left, false);
    }
  }
  with_kind<T>(map.kind, [&](auto zero) {
    using F = decltype(zero);
    const F* f1 = static_cast<const F*>(map.values) + memory.tile.b * map.batch_stride + c;
    if (std::is_same_v<F, T> && map.aligned && left > 0) {
      for (int slot = first; slot < slots; slot += kStep) {
        const int64_t at = memory.cells_at[slot];
        if (at >= 0) copy_async(&memory.cells[buffer][part][slot], reinterpret_cast<const Quad<T>*>(f1 + at));
      }
      return;
    }
#pragma unroll 2
    for (int slot = first; slot < slots; slot += kStep) {
      const int64_t at = memory.cells_at[slot];
      if (at >= 0) memory.cells[buffer][part][slot] = load_quad<T>(f1 + at, left, map.aligned);
    }
  });
}

template <int kGroups, class T>
FLOWFUSE_ARITHMETIC void add_products(const Quad<T> (&cells)[kGroups], const Quad<T>& pixel, int j,
                                      T (*sums)[kOwned]) {
#pragma unroll
  for (int c = 0; c < Quad<T>::kCount; ++c) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) sums[group][j] += cells[group].values[c] * pixel.values[c];
  }
}

// Adds what is staged in a buffer to the sums of the warp's pixels with the cells in kGroups slots of each lane.
template <int kGroups, class T>
__device__ __forceinline__ void multiply_groups(const TileMemory<T>& memory, int buffer, int own, const int* slots,
                                                T (*sums)[kOwned]) {
#pragma unroll 1
  for (int part = 0; part < kStaged; ++part) {
    Quad<T> cells[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) cells[group] = memory.cells[buffer][part][slots[group]];
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const Quad<T> pixel = memory.pixels[buffer][part][own + j];
      add_products(cells, pixel, j, sums);
    }
  }
}

// The same for a number of groups that is known when it runs, up to kGroups; the same in all lanes.
template <int kGroups, class T>
__device__ __forceinline__ void multiply_up_to(int groups, const TileMemory<T>& memory, int buffer, int own,
                                               const int* slots, T (*sums)[kOwned]) {
  if constexpr (kGroups > 0) {
    if (groups == kGroups) {
      multiply_groups<kGroups>(memory, buffer, own, slots, sums);
    } else {
      multiply_up_to<kGroups - 1>(groups, memory, buffer, own, slots, sums);
    }
  }
}

// The cells of the box of a warp's pixels, in the footprint of the tile.
struct OwnCells {
  int left, top, width, height;
};

template <class T>
__device__ __forceinline__ OwnCells own_cells(const TileMemory<T>& memory) {
  const Box box = memory.boxes[threadIdx.x / kWarp];
  if (box.empty()) return {0, 0, 0, 0};
  return {static_cast<int>(box.x0 - memory.tile.left), static_cast<int>(box.y0 - memory.tile.top),
          static_cast<int>(box.x1 - box.x0), static_cast<int>(box.y1 - box.y0)};
}

// Slots for the rows [top, bottom) of the footprint, `pitch` a row.
template <class T>
__device__ __forceinline__ void place_cells(const FeatureLookup<T>& job, int top, int bottom, int pitch,
                                            TileMemory<T>& memory) {
  const Tile& tile = memory.tile;
  const int64_t columns = job.maps[tile.level].columns, first = (tile.top + top) * columns + tile.left;
  for (int slot = static_cast<int>(threadIdx.x); slot < (bottom - top) * pitch; slot += kTileThreads) {
    const int row = slot / pitch, column = slot % pitch;
    memory.cells_at[slot] = column < tile.width ? (first + row * columns + column) * job.channels : -1;
  }
}

// The sums of the warp's pixels with cell (column, row) of the footprint: kept where they are taps.
template <class T>
__device__ __forceinline__ void keep_taps(const FeatureLookup<T>& job, int column, int row, const T (&sums)[kOwned],
                                          TileMemory<T>& memory) {
  const int own = static_cast<int>(threadIdx.x) / kWarp * kOwned;
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
    const int dx = column - memory.origins[own + j][0], dy = row - memory.origins[own + j][1];
    if (dx < 0 || dx >= memory.tile.columns || dy < 0 || dy >= job.side()) continue;
    memory.taps[(own + j) * memory.tile.stride + dx * job.side() + dy] = job.scale * sums[j];
  }
}

// Taps of a dense tile, those inside the map.
template <class T>
__device__ __forceinline__ void multiply_dense(const FeatureLookup<T>& job, TileMemory<T>& memory) {
  constexpr int kMost = kMostGroups<T>;
  constexpr int64_t kStep = kStaged * Quad<T>::kCount;  // channels
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int height = memory.tile.height;
  // Lanes have the cells of their warp's box row by row. With this pitch their slots go on, modulo the eight quads
  // that the banks hold, from one row to the next; warps' boxes have nearly always the width of the first one.
  int widest = 1;
  for (int other = 0; other < kTileWarps; ++other) {
    widest = larger(widest, static_cast<int>(memory.boxes[other].width()));
  }
  const int width = memory.tile.width, first_width = static_cast<int>(memory.boxes[0].width());
  const int pitch = larger(1, width + ((first_width - width) & 7));
  const int rows = smaller(kSlots / pitch, kMost * kWarp / widest);  // at a time
  for (int top = 0; top < height; top += rows) {
    const int bottom = smaller(top + rows, height), slots_used = (bottom - top) * pitch;
    place_cells(job, top, bottom, pitch, memory);
    const OwnCells own = own_cells(memory);
    const int first = larger(own.top, top), count = larger(smaller(own.top + own.height, bottom) - first, 0) * own.width;
    int slots[kMost];  // of the cells of this lane
#pragma unroll
    for (int group = 0; group < kMost; ++group) {
      const int k = group * kWarp + lane;
      slots[group] = k < count ? (first - top + k / own.width) * pitch + own.left + k % own.width : 0;
    }
    T sums[kMost][kOwned] = {};
    int buffer = 1;
    for (int64_t next = 0; next < job.channels + kStep; next += kStep) {
      copies_done();
      __syncthreads();  // this buffer has been written, the other one has been read; the cells have been placed
      if (next < job.channels) stage(job, next, slots_used, 1 - buffer, memory);
      if (next > 0) multiply_up_to<kMost>((count + kWarp - 1) / kWarp, memory, buffer, warp * kOwned, slots, sums);
      buffer = 1 - buffer;
    }
#pragma unroll
    for (int group = 0; group < kMost; ++group) {
      const int k = group * kWarp + lane;
      if (k < count) keep_taps(job, own.left + k % own.width, first + k / own.width, sums[group], memory);
    }
  }
}

// Taps of a tile, those inside the map, pixel by pixel: eight lanes share the channels of a product.
template <class T>
__device__ __forceinline__ void multiply_scattered(const FeatureLookup<T>& job, TileMemory<T>& memory) {
  constexpr int kHeld = 8;                 // quads of f0 in the registers of a lane
  constexpr int kTogether = kWarp / 8;     // products
  constexpr int kCount = Quad<T>::kCount;
  const Tile& tile = memory.tile;
  const Map& map = job.maps[tile.level];
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int part = lane % 8;
  for (int i = warp * kOwned; i < (warp + 1) * kOwned; ++i) {
    const Window<T> window = memory.windows[i];
    if (window.reach != Reach::kNear) continue;
    const Box box = cells_under(map, window.x + tile.first, window.y, tile.columns, job.side());
    const int width = static_cast<int>(box.width()), count = width * static_cast<int>(box.height());
    if (count == 0) continue;
    T* taps = memory.taps + i * tile.stride;
    const T* f0 = job.f0 + tile.b * job.f0_stride + memory.pixels_at[i];
    for (int64_t begin = part * kCount; begin < job.channels + part * kCount; begin += 8 * kHeld * kCount) {
      Quad<T> held[kHeld];
#pragma unroll
      for (int q = 0; q < kHeld; ++q) {
        const int64_t c = begin + q * 8 * kCount;
        held[q] = load_quad<T>(f0 + c, job.channels - c, job.f0_aligned);
      }
      for (int first = 0; first < count; first += kTogether) {  // the lanes stay together for the shuffles
        const int k = smaller(first + lane / 8, count - 1);
        const int64_t x = box.x0 + k % width, y = box.y0 + k / width;
        T sum = 0;
        with_kind<T>(map.kind, [&](auto zero) {
          using F = decltype(zero);
          const F* f1 = static_cast<const F*>(map.values) + tile.b * map.batch_stride +
                        (y * map.columns + x) * job.channels;
#pragma unroll
          for (int q = 0; q < kHeld; ++q) {
            const int64_t c = begin + q * 8 * kCount;
            if (c >= job.channels) continue;
            const Quad<T> cell = load_quad<T>(f1 + c, job.channels - c, map.aligned);
#pragma unroll
            for (int n = 0; n < kCount; ++n) sum += held[q].values[n] * cell.values[n];
          }
        });
        for (int shift = 1; shift < 8; shift *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, shift);
        if (part != 0 || first + lane / 8 >= count) continue;
        T& tap = taps[(x - window.x - tile.first) * job.side() + y - window.y];
        tap = begin == 0 ? job.scale * sum : tap + job.scale * sum;
      }
    }
  }
}

// Taps of a tile into shared memory; outside the map they are 0. Ends with a barrier.
template <class T>
__device__ __forceinline__ void make_taps(const FeatureLookup<T>& job, TileMemory<T>& memory) {
  for (int k = static_cast<int>(threadIdx.x); k < kPixels * memory.tile.stride; k += kTileThreads) memory.taps[k] = 0;
  __syncthreads();
  if (memory.tile.dense) {
    multiply_dense(job, memory);
  } else {
    multiply_scattered(job, memory);
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
size_t tile_bytes(const FeatureLookup<T>& job) {
  const int side = 2 * job.radius + 2;
  return sizeof(TileMemory<T>) + kPixels * tap_stride(job.part_size + 1, side) * sizeof(T);
}

// A look-up with the tensors that it points into.
template <class T>
struct PreparedLookup {
  FeatureLookup<T> job{};
  std::vector<Features> held;

  PreparedLookup(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& points, int64_t radius) {
    static_cast<Lookup&>(job) = lookup_of(points, f1_levels.size(), radius);
    constexpr int64_t kCount = Quad<T>::kCount;
    job.channels = f0.size(1);
    job.height = f0.size(2);
    job.width = f0.size(3);
    job.across = (job.width + kTileColumns - 1) / kTileColumns;
    job.tiles = (job.height + kTileRows - 1) / kTileRows * job.across;
    job.scale = T(1) / std::sqrt(static_cast<T>(job.channels));
    held.push_back(packed(f0, sum_dtype(f0.scalar_type()), MemoryFormat::ChannelsLast));
    job.f0 = data<T>(held[0].tensor);
    job.f0_stride = held[0].batch_stride;
    job.f0_aligned = loads_quads(held[0].tensor, job.channels, kCount, sizeof(T));
    for (size_t level = 0; level < f1_levels.size(); ++level) {
      held.push_back(packed(f1_levels[level], f1_levels[level].scalar_type(), MemoryFormat::ChannelsLast));
      const Features& f1 = held.back();
      job.maps[level] = {f1.tensor.const_data_ptr(), f1.batch_stride, f1.rows, f1.columns,
                         kind_of(f1.tensor.scalar_type()),
                         loads_quads(f1.tensor, job.channels, kCount,
                                     static_cast<int64_t>(sizeof_dtype(f1.tensor.scalar_type())))};
    }
    // As many columns of a window as fit, two at least, in parts of about the same size.
    const int size = 2 * job.radius + 1, side = size + 1;
    const int columns = std::max(2, static_cast<int>(kTapBytes / (kPixels * sizeof(T)) - 1) / side);
    const int most = std::min(columns, side) - 1;
    job.parts = (size + most - 1) / most;
    job.part_size = (size + job.parts - 1) / job.parts;
    job.parts = (size + job.part_size - 1) / job.part_size;
  }
};

}  // namespace flowfuse
