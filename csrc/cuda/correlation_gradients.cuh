// Gradients of features on demand: sums over pixels and cells that have a tap in common. This header has them by the
// CUDA cores; correlation_matrix_gradients.cuh by the tensor cores, which take the same lists.
//
// A warp owns 8 pixels (4 x 2, for f0's gradient) or 8 cells (2 x 4, for f1's) and a quad of channels a lane. It goes
// through the cells, or the pixels, whose taps they share: a matrix of tap gradients, 8 for each, is put into shared
// memory, 0 where there is no tap, and multiplied with their features, which are read along the channels from global
// memory. A load of 16 bytes of features and two of factors serve 32 multiply-adds. Where windows of radius 4 lie as the
// pixels do, 70 % of these are asked for: 8 x 100 of 8 x 143.
//
// No sum depends on the order in which blocks run: each has one owner, or parts that are added in a fixed order.
#pragma once

#include "cuda/correlation_products.cuh"

namespace flowfuse::cuda {

constexpr int kRegionColumns = 2, kRegionRows = 4;  // cells of a warp: taps along y lie side by side in memory
constexpr int kBatch = 64;                          // cells or pixels whose factors are in shared memory
constexpr int kLoads = 4;                           // of features that a lane has under way
#ifndef FLOWFUSE_WANTED_WARPS
#define FLOWFUSE_WANTED_WARPS 512
#endif
constexpr int64_t kWantedWarps = FLOWFUSE_WANTED_WARPS;  // for a level of an item: small ones are summed in slices

static_assert(kRegionColumns * kRegionRows == kWarpPixels, "a lane has eight sums of each channel");

// First tap of a window in its map.
struct Origin {
  int64_t x, y;
};

// Gradient in a level of f1 [B, rows, columns, C].
template <class T>
struct MapGradient {
  T* grad;
  T* sums;          // [slices, items in hand, rows, columns, C] where there are several slices
  int64_t regions;  // of an item
  int64_t slices;   // of the tiles in hand, each summed by a warp of its own
};

// The backward pass for the tiles [first_tile, first_tile + tiles_in_hand) of the items [item, item + items_in_hand).
// What is kept of them between kernels lies in rows, one for each item, level and tile.
template <class T, class F = T>
struct GradientParams : FeatureLookup<T, F> {
  int64_t item, items_in_hand, first_tile, tiles_in_hand;
  int64_t chunk;          // channels of a warp
  const T* grad;          // of the values, [B, levels * window_size, pixels]
  T* kept;                // gradients of taps, [rows, kPixels, taps]
  Origin* origins;        // [rows, kPixels]
  Box* footprints;        // [rows]
  Box* group_footprints;  // around those of kWarp tiles each, [items, levels, groups]
  T* centre_sums;         // gradients in the coordinates, [levels * parts, items, tiles, kPixels, 2], or null
  T* grad_coords;         // [B, 2, pixels]
  T* grad_f0;             // [B, pixels, C]
  MapGradient<T> targets[kMaxLevels];

  __device__ __forceinline__ int64_t row(int64_t item_in_hand, int level, int64_t tile_in_hand) const {
    return (item_in_hand * this->levels + level) * tiles_in_hand + tile_in_hand;
  }
  FLOWFUSE_INLINE int64_t groups() const { return (tiles_in_hand + kWarp - 1) / kWarp; }
  __device__ __forceinline__ int64_t rows_in_hand() const { return items_in_hand * this->levels * tiles_in_hand; }
  FLOWFUSE_INLINE int64_t chunks() const { return (this->channels + chunk - 1) / chunk; }
  // Lanes that have a feature together; the others of a warp take the next one. Of the CUDA cores.
  __device__ __forceinline__ int lanes() const { return static_cast<int>(chunk) / Quad<T>::kCount; }
};

// Pixels listed for a warp, in shared memory.
struct PixelList {
  int64_t features_at[kBatch];  // where the features of a pixel lie
  int64_t taps_at[kBatch];      // and its taps
  int dx[kBatch], dy[kBatch];   // its tap on the first cell of the region
};

// Shared memory of a warp.
template <class T>
struct FactorMemory {
  Quad<T> factors[kWarpPixels / Quad<T>::kCount][kBatch + 1];  // eight for each cell or pixel
  // Where the features of cells lie too; dx, dy of pixels owned: where in the box their first tap is.
  PixelList list;
};

template <class T>
__device__ __forceinline__ FactorMemory<T>& factor_memory() {
  return shared_memory<FactorMemory<T>>()[threadIdx.x / kWarp];
}

template <class T>
FLOWFUSE_ARITHMETIC void add_products(const T (&factors)[kWarpPixels], const Quad<T>& feature,
                                      T (&sums)[kWarpPixels][Quad<T>::kCount]) {
#pragma unroll
  for (int j = 0; j < kWarpPixels; ++j) {
#pragma unroll
    for (int c = 0; c < Quad<T>::kCount; ++c) {
      sums[j][c] += factors[j] * feature.values[c];
    }
  }
}

// Adds the products of the first `count` factors and features in shared memory, a multiple of kLoads * step: number
// first, first + step ... for this lane, whose features begin at `features` and have `left` channels.
template <bool kAligned, class T>
__device__ __forceinline__ void add_batch(const T* features, int64_t left, int first, int step, int count,
                                          const FactorMemory<T>& memory, T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  constexpr int kMost = kAligned ? kLoads : 1;
  for (int begin = first; begin < count; begin += kMost * step) {
    Quad<T> loaded[kMost];
#pragma unroll
    for (int n = 0; n < kMost; ++n) {
      loaded[n] = load_quad<kAligned>(features + memory.list.features_at[begin + n * step], left);
    }
#pragma unroll
    for (int n = 0; n < kMost; ++n) {
      T factors[kWarpPixels];
#pragma unroll
      for (int part = 0; part < kWarpPixels / Quad<T>::kCount; ++part) {
        const Quad<T> quad = memory.factors[part][begin + n * step];
#pragma unroll
        for (int c = 0; c < Quad<T>::kCount; ++c) factors[part * Quad<T>::kCount + c] = quad.values[c];
      }
      add_products(factors, loaded[n], sums);
    }
  }
}

// The same for all lanes, which share the features among them.
template <class T>
__device__ __forceinline__ void add_batch(const GradientParams<T>& params, const T* features, int64_t channel,
                                          int count, T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  const int first = static_cast<int>(threadIdx.x) % kWarp / params.lanes(), step = kWarp / params.lanes();
  const int64_t left = params.channels - channel;
  if (left <= 0) return;
  if (params.aligned) {
    add_batch<true>(features + channel, left, first, step, count, factor_memory<T>(), sums);
  } else {
    add_batch<false>(features + channel, left, first, step, count, factor_memory<T>(), sums);
  }
}

// As many as add_batch takes where there are `count`. What is added has factors of 0 and one of their features: those of
// others might not be finite.
template <class T>
__device__ __forceinline__ int padded_count(const GradientParams<T>& params, int count) {
  const int multiple = kLoads * (kWarp / params.lanes());
  return (count + multiple - 1) / multiple * multiple;
}

// Adds up the sums of the lanes that took different features of the same channels.
template <class T>
__device__ __forceinline__ void join_lanes(int lanes, T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  for (int step = lanes; step < kWarp; step *= 2) {
    for (int j = 0; j < kWarpPixels; ++j) {
      for (int c = 0; c < Quad<T>::kCount; ++c) sums[j][c] += __shfl_xor_sync(kWholeWarp, sums[j][c], step);
    }
  }
}

// A quad of a gradient, or as much of it as is left.
template <class T>
__device__ __forceinline__ void store_sums(T* target, int64_t left, bool aligned, bool add, T scale,
                                           const T (&sums)[Quad<T>::kCount]) {
  if (aligned && !add) {
    Quad<T> quad;
    for (int c = 0; c < Quad<T>::kCount; ++c) quad.values[c] = scale * sums[c];
    *reinterpret_cast<Quad<T>*>(target) = quad;
    return;
  }
  for (int c = 0; c < Quad<T>::kCount && c < left; ++c) target[c] = add ? target[c] + scale * sums[c] : scale * sums[c];
}

// ---- the gradient in f0 --------------------------------------------------------------------------

// Adds the products of `count` cells of a box from number `first` on, column by column. The box begins at cell number
// `corner` of the map; where the pixels have their first taps in it is in shared memory.
template <class T>
__device__ __forceinline__ void add_cells(const GradientParams<T>& params, const FeatureMap<T>& map, const T* taps,
                                          int64_t corner, int height, int first, int count, int64_t item,
                                          int64_t channel, T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  FactorMemory<T>& memory = factor_memory<T>();
  const int side = params.tap_side(), padded = padded_count(params, count);
  for (int begin = 0; begin < padded; begin += kWarp) {
    const int k = begin + static_cast<int>(threadIdx.x) % kWarp, cell = first + smaller(k, count - 1);
    const int x = cell / height, y = cell % height;
    Quad<T> factors[kWarpPixels / Quad<T>::kCount];
#pragma unroll
    for (int j = 0; j < kWarpPixels; ++j) {
      const int dx = x - memory.list.dx[j], dy = y - memory.list.dy[j];
      const bool inside = k < count && dx >= 0 && dx < side && dy >= 0 && dy < side;
      const T tap =
          taps[inside ? j * params.tap_count() + dx * side + dy : 0];  // without a branch: all loads under way
      factors[j / Quad<T>::kCount].values[j % Quad<T>::kCount] = inside ? tap : T(0);
    }
#pragma unroll
    for (int part = 0; part < kWarpPixels / Quad<T>::kCount; ++part) memory.factors[part][k] = factors[part];
    memory.list.features_at[k] = (corner + y * map.columns + x) * params.channels;
  }
  __syncwarp();
  add_batch(params, map.values + (params.item + item) * map.batch_stride, channel, padded, sums);
  __syncwarp();  // the factors have been read
}

// Whether the box around the windows of the pixels of a warp, which lanes have one each, has at most as many cells as
// they have taps.
template <class T>
__device__ __forceinline__ bool lie_close(const GradientParams<T>& params, const FeatureMap<T>& map,
                                          const Origin& origin) {
  const Box own = cells_under(map, origin.x, origin.y, params.tap_side(), params.tap_side()),
            all = enclosing_lanes(own, kWarpPixels);
  int taps = static_cast<int>(own.width() * own.height());
  for (int step = 1; step < kWarpPixels; step *= 2) taps += __shfl_xor_sync(kWholeWarp, taps, step);
  return all.width() * all.height() <= taps;
}

// Adds one level's share of the gradients in the f0 of the eight pixels of this warp in a tile: of all together, or one
// by one where their windows lie far apart.
template <class T>
__device__ __forceinline__ void add_level(const GradientParams<T>& params, int item, int level, int tile,
                                          int64_t channel, T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  FactorMemory<T>& memory = factor_memory<T>();
  const int j = static_cast<int>(threadIdx.x) % kWarpPixels;
  const FeatureMap<T>& map = params.maps[level];
  const int64_t first_pixel = params.row(item, level, tile) * kPixels + threadIdx.x / kWarp * kWarpPixels;
  const Origin origin = params.origins[first_pixel + j];
  const int turns = lie_close(params, map, origin) ? 1 : kWarpPixels;
  for (int turn = 0; turn < turns; ++turn) {
    const bool counts = turns == 1 || j == turn;
    const Box own = counts ? cells_under(map, origin.x, origin.y, params.tap_side(), params.tap_side()) : empty_box();
    const Box box = enclosing_lanes(own, kWarpPixels);
    if (threadIdx.x % kWarp < kWarpPixels) {
      memory.list.dx[j] = own.empty() ? 1 << 20 : static_cast<int>(origin.x - box.x0);
      memory.list.dy[j] = own.empty() ? 1 << 20 : static_cast<int>(origin.y - box.y0);
    }
    __syncwarp();
    const int height = static_cast<int>(box.height()), cells = static_cast<int>(box.width()) * height;
    const int64_t corner = box.empty() ? 0 : box.y0 * map.columns + box.x0;
    for (int first = 0; first < cells; first += kBatch) {
      add_cells(params, map, params.kept + first_pixel * params.tap_count(), corner, height, first,
                smaller(kBatch, cells - first), item, channel, sums);
    }
  }
}

template <class T>
__device__ __forceinline__ void sum_pixels(const GradientParams<T>& params, int item, int tile, int64_t channel,
                                           T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  for (int j = 0; j < kWarpPixels; ++j) {
    for (int c = 0; c < Quad<T>::kCount; ++c) sums[j][c] = 0;
  }
  for (int level = 0; level < params.levels; ++level) add_level(params, item, level, tile, channel, sums);
  join_lanes(params.lanes(), sums);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>) gather_f0(GradientParams<T> params) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t index = blockIdx.x; index < params.items_in_hand * params.tiles_in_hand * params.chunks();
       index += gridDim.x) {
    const int64_t channel = index % params.chunks() * params.chunk + lane % params.lanes() * Quad<T>::kCount;
    // What is in hand fits into the workspace: its numbers are small, and registers are few.
    const int tile = static_cast<int>(index / params.chunks() % params.tiles_in_hand);
    const int item = static_cast<int>(index / params.chunks() / params.tiles_in_hand);
    T sums[kWarpPixels][Quad<T>::kCount];
    sum_pixels(params, item, tile, channel, sums);
    const int64_t left = params.channels - channel;
    if (lane >= params.lanes() || left <= 0) continue;
#pragma unroll
    for (int j = 0; j < kWarpPixels; ++j) {
      const Spot spot = spot_of(params, params.first_tile + tile, warp * kWarpPixels + j);
      if (!spot.there) continue;
      T* target = params.grad_f0 + ((params.item + item) * params.pixels + spot.pixel) * params.channels + channel;
      store_sums(target, left, params.channels % Quad<T>::kCount == 0, false, params.scale, sums[j]);
    }
  }
}

// ---- the gradient in f1 --------------------------------------------------------------------------

// Eight cells of a level of an item, and the tiles [first, last) in hand that are summed over.
struct Region {
  int64_t item, x, y, first, last, row;  // row of tile 0 in hand
  int level;

  __device__ __forceinline__ bool meets(const Box& box) const {
    return box.x0 < x + kRegionColumns && x < box.x1 && box.y0 < y + kRegionRows && y < box.y1;
  }
};

// Adds the products of the pixels listed in shared memory.
template <class T>
__device__ __forceinline__ void add_listed(const GradientParams<T>& params, const Region& region, int count,
                                           int64_t channel, T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  FactorMemory<T>& memory = factor_memory<T>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, cell = lane % kWarpPixels,
            padded = padded_count(params, count);
  __syncwarp();  // the list is there
  if (lane < padded - count) memory.list.features_at[count + lane] = memory.list.features_at[0];
  for (int begin = lane / kWarpPixels; begin < padded; begin += kLoads * kWarp / kWarpPixels) {
    T factors[kLoads];
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int k = begin + n * kWarp / kWarpPixels, place = smaller(k, count - 1);
      const int dx = memory.list.dx[place] + cell / kRegionRows, dy = memory.list.dy[place] + cell % kRegionRows;
      const bool inside = k < count && dx >= 0 && dx < params.tap_side() && dy >= 0 && dy < params.tap_side();
      const T tap =
          params.kept[memory.list.taps_at[place] + (inside ? dx * params.tap_side() + dy : 0)];  // as above: no branch
      factors[n] = inside ? tap : T(0);
    }
#pragma unroll
    for (int n = 0; n < kLoads; ++n) {
      const int k = begin + n * kWarp / kWarpPixels;
      memory.factors[cell / Quad<T>::kCount][k].values[cell % Quad<T>::kCount] = factors[n];
    }
  }
  __syncwarp();
  add_batch(params, params.f0 + (params.item + region.item) * params.f0_stride, channel, padded, sums);
  __syncwarp();  // list and factors have been read
}

// Lists the pixels of a tile whose windows meet the region behind the `count` that are listed; returns how many it
// then has.
template <class T, class F>
__device__ __forceinline__ int list_pixels(const GradientParams<T, F>& params, const Region& region, int64_t tile,
                                           int count, PixelList& list) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t pixel = (region.row + tile) * kPixels + lane;
  const Origin origin = params.origins[pixel];
  const int64_t dx = region.x - origin.x, dy = region.y - origin.y;
  const bool shares = dx > -kRegionColumns && dx < params.tap_side() && dy > -kRegionRows && dy < params.tap_side();
  const unsigned sharing = __ballot_sync(kWholeWarp, shares);
  if (shares) {
    const int place = count + __popc(sharing & ((1u << lane) - 1));
    list.features_at[place] = spot_of(params, params.first_tile + tile, lane).pixel * params.channels;
    list.taps_at[place] = pixel * params.tap_count();
    list.dx[place] = static_cast<int>(dx);
    list.dy[place] = static_cast<int>(dy);
  }
  return count + __popc(sharing);
}

// Goes through the pixels whose windows meet the region and calls add(count) for lists of them, full or the last.
template <class T, class F, class Add>
__device__ __forceinline__ void visit_pixels(const GradientParams<T, F>& params, const Region& region, PixelList& list,
                                             const Add& add) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const Box* groups = params.group_footprints + (region.item * params.levels + region.level) * params.groups();
  const int64_t last_group = (region.last + kWarp - 1) / kWarp;
  int count = 0;  // of pixels in the list
  for (int64_t base = region.first / kWarp; base < last_group; base += kWarp) {
    const bool group_meets = base + lane < last_group && region.meets(groups[base + lane]);
    for (unsigned votes = __ballot_sync(kWholeWarp, group_meets); votes != 0; votes &= votes - 1) {
      const int64_t first = (base + __ffs(static_cast<int>(votes)) - 1) * kWarp, tile = first + lane;
      const bool meets =
          tile >= region.first && tile < region.last && region.meets(params.footprints[region.row + tile]);
      for (unsigned tiles = __ballot_sync(kWholeWarp, meets); tiles != 0; tiles &= tiles - 1) {
        count = list_pixels(params, region, first + __ffs(static_cast<int>(tiles)) - 1, count, list);
        if (count <= kBatch - kWarp) continue;
        add(count);
        count = 0;
      }
    }
  }
  if (count > 0) add(count);
}

template <class T>
__device__ __forceinline__ void sum_region(const GradientParams<T>& params, const Region& region, int64_t channel,
                                           T (&sums)[kWarpPixels][Quad<T>::kCount]) {
  for (int j = 0; j < kWarpPixels; ++j) {
    for (int c = 0; c < Quad<T>::kCount; ++c) sums[j][c] = 0;
  }
  visit_pixels(params, region, factor_memory<T>().list,
               [&](int count) { add_listed(params, region, count, channel, sums); });
  join_lanes(params.lanes(), sums);
}

// Warps of a level.
template <class T, class F>
__device__ __forceinline__ int64_t warps_of(const GradientParams<T, F>& params, int level) {
  return params.items_in_hand * params.targets[level].regions * params.targets[level].slices * params.chunks();
}

// What a warp makes of the gradients in f1: the channels from `channel` on of a region, at `target` for its cell 0 of
// the map.
template <class T>
struct RegionShare {
  Region region;
  int64_t channel;
  T* target;
  bool add;  // to what is there
};

template <class T, class F>
__device__ __forceinline__ RegionShare<T> share_of(const GradientParams<T, F>& params, int64_t number) {
  Region region{};
  int64_t index = number;
  while (index >= warps_of(params, region.level)) index -= warps_of(params, region.level++);
  const FeatureMap<F>& map = params.maps[region.level];
  const MapGradient<T>& target = params.targets[region.level];
  const int64_t across = (map.columns + kRegionColumns - 1) / kRegionColumns;
  region.x = index % target.regions % across * kRegionColumns;  // warps of a block have regions side by side
  region.y = index % target.regions / across * kRegionRows;
  index /= target.regions;
  const int64_t channel = index % params.chunks() * params.chunk;
  index /= params.chunks();
  const int64_t slice = index % target.slices;
  region.item = index / target.slices;
  region.first = params.tiles_in_hand * slice / target.slices;
  region.last = params.tiles_in_hand * (slice + 1) / target.slices;
  region.row = params.row(region.item, region.level, 0);
  const bool whole = target.slices == 1;  // else the slices are added by add_slices
  const int64_t item = whole ? params.item + region.item : slice * params.items_in_hand + region.item;
  T* grad = (whole ? target.grad : target.sums) + item * map.rows * map.columns * params.channels;
  return {region, channel, grad, whole && params.first_tile > 0};
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>) gather_f1(GradientParams<T> params, int64_t warps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t number = int64_t{blockIdx.x} * kTileWarps + warp; number < warps;
       number += int64_t{gridDim.x} * kTileWarps) {
    const RegionShare<T> share = share_of(params, number);
    const Region& region = share.region;
    const FeatureMap<T>& map = params.maps[region.level];
    const int64_t channel = share.channel + lane % params.lanes() * Quad<T>::kCount;
    T sums[kWarpPixels][Quad<T>::kCount];
    sum_region(params, region, channel, sums);
    const int64_t left = params.channels - channel;
    if (lane >= params.lanes() || left <= 0) continue;
#pragma unroll
    for (int j = 0; j < kWarpPixels; ++j) {
      const int64_t x = region.x + j / kRegionRows, y = region.y + j % kRegionRows;
      if (x >= map.columns || y >= map.rows) continue;
      store_sums(share.target + (y * map.columns + x) * params.channels + channel, left,
                 params.channels % Quad<T>::kCount == 0, share.add, params.scale, sums[j]);
    }
  }
}

// Gradients of the levels whose tiles were summed in slices.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) add_slices(GradientParams<T, F> params, int64_t elements) {
  for (int64_t number = first_item(); number < elements; number += item_step()) {
    int64_t index = number;
    for (int level = 0; level < params.levels; ++level) {
      const MapGradient<T>& target = params.targets[level];
      const int64_t each = params.maps[level].rows * params.maps[level].columns * params.channels;
      const int64_t count = target.slices > 1 ? params.items_in_hand * each : 0;
      if (index >= count) {
        index -= count;
        continue;
      }
      T& grad = target.grad[params.item * each + index];
      T sum = params.first_tile > 0 ? grad : T(0);
      for (int64_t slice = 0; slice < target.slices; ++slice) sum += target.sums[slice * count + index];
      grad = sum;
      break;
    }
  }
}

}  // namespace flowfuse::cuda
