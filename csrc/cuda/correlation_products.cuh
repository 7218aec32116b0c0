// Products of features on demand by the CUDA cores: the taps of a tile of pixels.
//
// A product of C channels takes two values for every multiply-add, so what decides is how often a value that was
// loaded is used. A block makes a block tile (correlation_tiles.cuh). Flow is smooth: the windows of the tile overlap,
// and the box around them (its footprint) goes through shared memory stage by stage, the next on its way while one is
// multiplied. A stage is 8 channels of the block tile in shared memory, two of them in turns, filled by asynchronous
// copies. Each warp makes the products of its 4 x 2 pixels with the cells of their own box alone, up to 192 of them: a
// lane has 8 pixels and up to 6 cells, so 8 + 6 loads of 16 bytes serve 4 * 48 multiply-adds.
// Windows of radius 4 that lie as the pixels do have 10 x 10 cells in a box of 13 x 11: 70 % of the products are asked
// for, 62 % of those of whole groups of 32 cells, and more on the next levels, where windows lie closer.
//
// Where windows are scattered, boxes are mostly empty. Then a warp takes pixel by pixel: f0 in registers, f1 from
// global memory, four multiply-adds a load. Windows of many columns are taken in parts, a few columns each.
#pragma once

#include "cuda/correlation_tiles.cuh"

namespace flowfuse::cuda {

constexpr int kStaged = 2;   // quads of channels in a stage: a sector of each cell
constexpr int kSlots = 312;  // cells in a stage: 22 x 14 of the smooth case, padding included
constexpr int kPadding = 4;  // quads: two quads of four cells each are stored to different banks
#ifndef FLOWFUSE_MOST_PRODUCTS
#define FLOWFUSE_MOST_PRODUCTS 6
#endif
constexpr int64_t kMostProducts = FLOWFUSE_MOST_PRODUCTS;  // for each asked for; beyond, pixel by pixel is less work

// Groups of 32 cells that a warp multiplies at a time: 48 sums a thread, and 128 registers in all.
template <class T>
constexpr int kMostGroups = std::is_same_v<T, double> ? 2 : 6;

// Blocks on a multiprocessor, at least.
#ifndef FLOWFUSE_TILE_BLOCKS
#define FLOWFUSE_TILE_BLOCKS 4
#endif
template <class T>
constexpr int kTileBlocks = std::is_same_v<T, double> ? 3 : FLOWFUSE_TILE_BLOCKS;

// A tile's part of the windows, and where the footprint is.
template <class T>
struct BlockTile : WindowPart {
  int64_t left, top;  // first cell of the footprint
  int width, height;
  const T *f0, *f1;  // features of the item
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

template <class T>
size_t tile_bytes(const FeatureLookup<T>& params) {
  const int side = 2 * params.radius + 2;
  return sizeof(TileMemory<T>) + kPixels * tap_stride(params.part_size + 1, side) * sizeof(T);
}

// A quad of channels. Where they are not aligned, they are loaded one by one, and 0 beyond the `left` that there are.
template <bool kAligned, class T>
__device__ __forceinline__ Quad<T> load_quad(const T* features, int64_t left) {
  Quad<T> quad;
  if constexpr (kAligned) {
    quad = *reinterpret_cast<const Quad<T>*>(features);
  } else {
    for (int c = 0; c < Quad<T>::kCount; ++c) quad.values[c] = c < left ? features[c] : T(0);
  }
  return quad;
}

// The same where that is known when it runs.
template <class T>
__device__ __forceinline__ Quad<T> load_quad(const T* features, int64_t left, bool aligned) {
  return aligned && left > 0 ? load_quad<true>(features, left) : load_quad<false>(features, left);
}

template <class T>
__device__ __forceinline__ void load_tile(const FeatureLookup<T>& params, const WindowPart& part,
                                          TileMemory<T>& memory) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int i = warp * kWarpPixels + lane % kWarpPixels;
  const int first = part.first, columns = part.columns;
  const FeatureMap<T>& map = params.maps[part.level];
  const Spot spot = spot_of(params, part.number, i);
  const Window<T> window = window_of(params, part.b, spot, part.level);
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
    static_cast<WindowPart&>(tile) = part;
    tile.left = footprint.x0;
    tile.top = footprint.y0;
    tile.width = static_cast<int>(footprint.width());
    tile.height = static_cast<int>(footprint.height());
    tile.f0 = params.f0 + part.b * params.f0_stride;
    tile.f1 = map.values + part.b * map.batch_stride;
    tile.dense = dense;
  }
  __syncthreads();
}

// Copies the quads of channels from `channel` on of the tile's pixels and of the cells in the first `slots` slots.
template <class T>
__device__ __forceinline__ void stage(const FeatureLookup<T>& params, int64_t channel, int slots, int buffer,
                                      TileMemory<T>& memory) {
  constexpr int kStep = kTileThreads / kStaged;
  static_assert(kStep >= kPixels, "each thread has a pixel at most");
  const BlockTile<T>& tile = memory.tile;
  const int part = static_cast<int>(threadIdx.x) % kStaged, first = static_cast<int>(threadIdx.x) / kStaged;
  const int64_t c = channel + part * Quad<T>::kCount, left = params.channels - c;
  if (first < kPixels) {
    const int64_t at = memory.pixels_at[first];
    Quad<T>* target = &memory.pixels[buffer][part][first];
    if (params.aligned && at >= 0 && left > 0) {
      copy_async(target, reinterpret_cast<const Quad<T>*>(tile.f0 + c + at));
    } else {
      *target = load_quad<false>(tile.f0 + c + at, at < 0 ? 0 : left);
    }
  }
  Quad<T>* cells = memory.cells[buffer][part];
  const T* f1 = tile.f1 + c;
  if (params.aligned && left > 0) {
    for (int slot = first; slot < slots; slot += kStep) {
      const int64_t at = memory.cells_at[slot];
      if (at >= 0) copy_async(cells + slot, reinterpret_cast<const Quad<T>*>(f1 + at));
    }
    return;
  }
  for (int slot = first; slot < slots; slot += kStep) {
    const int64_t at = memory.cells_at[slot];
    if (at >= 0) cells[slot] = load_quad<false>(f1 + at, left);
  }
}

template <int kGroups, class T>
FLOWFUSE_ARITHMETIC void add_products(const Quad<T> (&cells)[kGroups], const Quad<T>& pixel, int j,
                                      T (*sums)[kWarpPixels]) {
#pragma unroll
  for (int c = 0; c < Quad<T>::kCount; ++c) {
#pragma unroll
    for (int group = 0; group < kGroups; ++group) sums[group][j] += cells[group].values[c] * pixel.values[c];
  }
}

// Adds what is staged in a buffer to the sums of the warp's pixels with the cells in kGroups slots of each lane.
template <int kGroups, class T>
__device__ __forceinline__ void multiply_groups(const TileMemory<T>& memory, int buffer, int own, const int* slots,
                                                T (*sums)[kWarpPixels]) {
#pragma unroll 1
  for (int part = 0; part < kStaged; ++part) {
    Quad<T> cells[kGroups];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) cells[group] = memory.cells[buffer][part][slots[group]];
#pragma unroll
    for (int j = 0; j < kWarpPixels; ++j) {
      const Quad<T> pixel = memory.pixels[buffer][part][own + j];
      add_products(cells, pixel, j, sums);
    }
  }
}

// The same for a number of groups that is known when it runs, up to kGroups; the same in all lanes.
template <int kGroups, class T>
__device__ __forceinline__ void multiply_up_to(int groups, const TileMemory<T>& memory, int buffer, int own,
                                               const int* slots, T (*sums)[kWarpPixels]) {
  if constexpr (kGroups > 0) {
    if (groups == kGroups) {
      multiply_groups<kGroups>(memory, buffer, own, slots, sums);
    } else {
      multiply_up_to<kGroups - 1>(groups, memory, buffer, own, slots, sums);
    }
  }
}

// The cells of the box of this warp's pixels, in the rows [top, bottom) of the footprint of the tile.
struct OwnCells {
  int left, top, width, count;
};

template <class T>
__device__ __forceinline__ OwnCells own_cells(int top, int bottom, const TileMemory<T>& memory) {
  const Box box = memory.boxes[threadIdx.x / kWarp];
  if (box.empty()) return {0, top, 1, 0};
  const int first = larger(top, static_cast<int>(box.y0 - memory.tile.top));
  const int last = smaller(bottom, static_cast<int>(box.y1 - memory.tile.top)), width = static_cast<int>(box.width());
  return {static_cast<int>(box.x0 - memory.tile.left), first, width, larger(last - first, 0) * width};
}

// Slots for the rows [top, bottom) of the footprint, `pitch` a row.
template <class T>
__device__ __forceinline__ void place_cells(const FeatureLookup<T>& params, int top, int bottom, int pitch,
                                            TileMemory<T>& memory) {
  const BlockTile<T>& tile = memory.tile;
  const int64_t columns = params.maps[tile.level].columns, first = (tile.top + top) * columns + tile.left;
  for (int slot = static_cast<int>(threadIdx.x); slot < (bottom - top) * pitch; slot += kTileThreads) {
    const int row = slot / pitch, column = slot % pitch;
    memory.cells_at[slot] = column < tile.width ? (first + row * columns + column) * params.channels : -1;
  }
}

// The sums of the warp's pixels with cell (column, row) of the footprint: kept where they are taps.
template <class T>
__device__ __forceinline__ void keep_taps(const FeatureLookup<T>& params, int column, int row,
                                          const T (&sums)[kWarpPixels], TileMemory<T>& memory) {
  const int own = static_cast<int>(threadIdx.x) / kWarp * kWarpPixels;
#pragma unroll
  for (int j = 0; j < kWarpPixels; ++j) {
    const int dx = column - memory.origins[own + j][0], dy = row - memory.origins[own + j][1];
    if (dx < 0 || dx >= memory.tile.columns || dy < 0 || dy >= params.tap_side()) continue;
    memory.taps[(own + j) * memory.tile.stride + dx * params.tap_side() + dy] = params.scale * sums[j];
  }
}

// Taps of a dense tile, those inside the map.
template <class T>
__device__ __forceinline__ void multiply_dense(const FeatureLookup<T>& params, TileMemory<T>& memory) {
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
    place_cells(params, top, bottom, pitch, memory);
    int slots[kMost];  // of the cells of this lane
    const OwnCells cells = own_cells(top, bottom, memory);
#pragma unroll
    for (int group = 0; group < kMost; ++group) {
      const int k = group * kWarp + lane, row = cells.top - top + k / cells.width;
      slots[group] = k < cells.count ? row * pitch + cells.left + k % cells.width : 0;
    }
    const int groups = (cells.count + kWarp - 1) / kWarp;
    T sums[kMost][kWarpPixels] = {};
    int buffer = 1;
    for (int64_t next = 0; next < params.channels + kStep; next += kStep) {
      copies_done();
      __syncthreads();  // this buffer has been written, the other one has been read; the cells have been placed
      if (next < params.channels) stage(params, next, slots_used, 1 - buffer, memory);
      if (next > 0) multiply_up_to<kMost>(groups, memory, buffer, warp * kWarpPixels, slots, sums);
      buffer = 1 - buffer;
    }
    const OwnCells again = own_cells(top, bottom, memory);  // not held in registers meanwhile
#pragma unroll
    for (int group = 0; group < kMost; ++group) {
      const int k = group * kWarp + lane;
      if (k >= again.count) continue;
      keep_taps(params, again.left + k % again.width, again.top + k / again.width, sums[group], memory);
    }
  }
}

constexpr int kSharing = 8;   // lanes that share the channels of a product
constexpr int kFragment = 4;  // quads of f0 in the registers of each

// This lane's part of the product with a cell: the quads of channels from `begin` on, kSharing quads apart.
template <bool kAligned, class T>
__device__ __forceinline__ T part_of_product(const Quad<T> (&fragment)[kFragment], const T* f1, int64_t begin,
                                             int64_t channels) {
  Quad<T> cell[kFragment];
#pragma unroll
  for (int q = 0; q < kFragment; ++q) {  // without a branch: all loads under way
    const int64_t c = begin + q * kSharing * Quad<T>::kCount;
    cell[q] = load_quad<kAligned>(f1 + (c < channels ? c : 0), channels - c);
  }
  T sum = 0;
#pragma unroll
  for (int q = 0; q < kFragment; ++q) {
    T product = 0;
#pragma unroll
    for (int n = 0; n < Quad<T>::kCount; ++n) product += fragment[q].values[n] * cell[q].values[n];
    sum += begin + q * kSharing * Quad<T>::kCount < channels ? product : T(0);
  }
  return sum;
}

// Adds up the products of a pixel's channels from `begin` on, kSharing * kFragment quads, with the cells of its taps.
template <class T>
__device__ __forceinline__ void add_scattered(const FeatureLookup<T>& params, const Box& box, int i, int64_t begin,
                                              TileMemory<T>& memory) {
  constexpr int kTogether = kWarp / kSharing;  // products
  const BlockTile<T>& tile = memory.tile;
  const FeatureMap<T>& map = params.maps[tile.level];
  const int part = static_cast<int>(threadIdx.x) % kSharing, turn = static_cast<int>(threadIdx.x) % kWarp / kSharing;
  const int64_t first_channel = begin + part * Quad<T>::kCount;
  const T* f0 = tile.f0 + memory.pixels_at[i];
  Quad<T> fragment[kFragment];
#pragma unroll
  for (int q = 0; q < kFragment; ++q) {
    const int64_t c = first_channel + q * kSharing * Quad<T>::kCount;
    fragment[q] = load_quad(f0 + c, params.channels - c, params.aligned);
  }
  const int width = static_cast<int>(box.width()), count = width * static_cast<int>(box.height());
  T* taps = memory.taps + i * tile.stride;
  for (int first = 0; first < count; first += kTogether) {  // the lanes stay together for the shuffles
    const int k = smaller(first + turn, count - 1);
    const int64_t x = box.x0 + k % width, y = box.y0 + k / width;
    const T* f1 = tile.f1 + (y * map.columns + x) * params.channels;
    T sum = params.aligned ? part_of_product<true>(fragment, f1, first_channel, params.channels)
                           : part_of_product<false>(fragment, f1, first_channel, params.channels);
    for (int shift = 1; shift < kSharing; shift *= 2) sum += __shfl_xor_sync(kWholeWarp, sum, shift);
    if (part != 0 || first + turn >= count) continue;
    const Window<T>& window = memory.windows[i];
    T& tap = taps[(x - window.x - tile.first) * params.tap_side() + y - window.y];
    tap = begin == 0 ? params.scale * sum : tap + params.scale * sum;
  }
}

// Taps of a tile, those inside the map, pixel by pixel.
template <class T>
__device__ __forceinline__ void multiply_scattered(const FeatureLookup<T>& params, TileMemory<T>& memory) {
  const BlockTile<T>& tile = memory.tile;
  const int own = static_cast<int>(threadIdx.x) / kWarp * kWarpPixels;
  for (int i = own; i < own + kWarpPixels; ++i) {
    const Window<T>& window = memory.windows[i];
    if (window.reach != Reach::kNear) continue;
    const Box box =
        cells_under(params.maps[tile.level], window.x + tile.first, window.y, tile.columns, params.tap_side());
    if (box.empty()) continue;
    for (int64_t begin = 0; begin < params.channels; begin += kSharing * kFragment * Quad<T>::kCount) {
      add_scattered(params, box, i, begin, memory);
    }
  }
}

// Taps of a tile into shared memory; outside the map they are 0. Ends with a barrier.
template <class T>
__device__ __forceinline__ void compute_taps(const FeatureLookup<T>& params, TileMemory<T>& memory) {
  for (int k = static_cast<int>(threadIdx.x); k < kPixels * memory.tile.stride; k += kTileThreads) memory.taps[k] = 0;
  __syncthreads();
  if (memory.tile.dense) {
    multiply_dense(params, memory);
  } else {
    multiply_scattered(params, memory);
  }
  __syncthreads();
}

}  // namespace flowfuse::cuda
