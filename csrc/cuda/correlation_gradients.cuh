// Gradients of features on demand: sums over pixels and cells that have a tap in common.
//
// A warp owns 8 pixels (4 x 2, for f0's gradient) or 8 cells (2 x 4, for f1's) and a quad of channels a lane. It goes
// through the cells, or the pixels, whose taps they share: a matrix of tap gradients, 8 for each, is put into shared
// memory, 0 where there is no tap, and multiplied with their features, which are read along the channels from global
// memory. A load of 16 bytes of features and two of factors serve 32 multiply-adds. As in correlation_tiles.cuh about
// 70 % of these are asked for where windows of radius 4 lie as the pixels do: 8 x 100 of 8 x 143.
//
// No sum depends on the order in which blocks run: each has one owner, or parts that are added in a fixed order.
#pragma once

#include "cuda/correlation_tiles.cuh"

namespace flowfuse {

constexpr int kRegionColumns = 2, kRegionRows = 4;  // cells of a warp: taps along y lie side by side in memory
constexpr int kBatch = 64;                          // cells or pixels whose factors are in shared memory
constexpr int64_t kWantedWarps = 512;               // for a level of an item: small ones are summed in slices

static_assert(kRegionColumns * kRegionRows == kOwned, "a lane has eight sums of each channel");

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
template <class T>
struct GradientJob : FeatureLookup<T> {
  int64_t item, items_in_hand, first_tile, tiles_in_hand;
  int lanes;               // that have a feature together; the others of a warp take the next one
  const T* grad;           // of the values, [B, levels * window_size, pixels]
  T* kept;                 // gradients of taps, [rows, kPixels, taps]
  Origin* origins;         // [rows, kPixels]
  Box* footprints;         // [rows]
  T* centre_sums;          // gradients in the coordinates, [levels * parts, items, tiles, kPixels, 2], or null
  T* grad_coords;          // [B, 2, pixels]
  T* grad_f0;              // [B, pixels, C]
  MapGradient<T> targets[kMaxLevels];

  __device__ __forceinline__ int64_t row(int64_t item_in_hand, int level, int64_t tile_in_hand) const {
    return (item_in_hand * this->levels + level) * tiles_in_hand + tile_in_hand;
  }
  __device__ __forceinline__ int64_t rows_in_hand() const { return items_in_hand * this->levels * tiles_in_hand; }
  FLOWFUSE_INLINE int64_t chunk() const { return int64_t{lanes} * Quad<T>::kCount; }  // channels of a warp
  FLOWFUSE_INLINE int64_t chunks() const { return (this->channels + chunk() - 1) / chunk(); }
};

// Shared memory of a warp.
template <class T>
struct FactorMemory {
  Quad<T> factors[kOwned / Quad<T>::kCount][kBatch + 1];  // eight for each cell or pixel
  int64_t features_at[kBatch];                            // where its features lie
  int64_t taps_at[kBatch];  // for pixels: their row of taps, and the tap on the first cell of the region
  int dx[kBatch], dy[kBatch];
};

template <class T>
__device__ __forceinline__ FactorMemory<T>& factor_memory() {
  return shared_memory<FactorMemory<T>>()[threadIdx.x / kWarp];
}

template <bool kCareful, class T>
FLOWFUSE_ARITHMETIC void add_products(const T (&factors)[kOwned], const Quad<T>& feature,
                                      T (&sums)[kOwned][Quad<T>::kCount]) {
#pragma unroll
  for (int j = 0; j < kOwned; ++j) {
#pragma unroll
    for (int c = 0; c < Quad<T>::kCount; ++c) {
      const T product = factors[j] * feature.values[c];
      sums[j][c] += kCareful && factors[j] == 0 ? T(0) : product;
    }
  }
}

// Adds the products of `count` factors and features, which begin at `features` for this lane and have `left` channels.
template <bool kCareful, class T, class F>
__device__ __forceinline__ void add_batch(const F* features, int64_t left, bool aligned, int first, int step, int count,
                                          const FactorMemory<T>& memory, T (&sums)[kOwned][Quad<T>::kCount]) {
  if (left <= 0) return;
#pragma unroll 4
  for (int k = first; k < count; k += step) {
    const Quad<T> feature = load_quad<T>(features + memory.features_at[k], left, aligned);
    T factors[kOwned];
#pragma unroll
    for (int part = 0; part < kOwned / Quad<T>::kCount; ++part) {
      const Quad<T> quad = memory.factors[part][k];
#pragma unroll
      for (int c = 0; c < Quad<T>::kCount; ++c) factors[part * Quad<T>::kCount + c] = quad.values[c];
    }
    add_products<kCareful>(factors, feature, sums);
  }
}

// Adds up the sums of the lanes that took different features of the same channels.
template <class T>
__device__ __forceinline__ void join_lanes(int lanes, T (&sums)[kOwned][Quad<T>::kCount]) {
  for (int step = lanes; step < kWarp; step *= 2) {
    for (int j = 0; j < kOwned; ++j) {
      for (int c = 0; c < Quad<T>::kCount; ++c) sums[j][c] += __shfl_xor_sync(kWholeWarp, sums[j][c], step);
    }
  }
}

// Whether all sums of the warp are finite. A feature that is not spoils, times a factor of 0, the sums of pixels and
// cells that have nothing to do with it: such a warp goes through its products again, carefully.
template <class T>
__device__ __forceinline__ bool all_finite(const T (&sums)[kOwned][Quad<T>::kCount]) {
  bool finite = true;
  for (int j = 0; j < kOwned; ++j) {
    for (int c = 0; c < Quad<T>::kCount; ++c) finite = finite && sums[j][c] - sums[j][c] == 0;
  }
  return __all_sync(kWholeWarp, finite);
}

// What a lane has of the gradients in eight features, into those that are `there`.
template <class T>
__device__ __forceinline__ void store_sums(T* target, int64_t left, bool aligned, bool add, T scale, const T (&sums)[Quad<T>::kCount]) {
  if (aligned && !add) {
    Quad<T> quad;
    for (int c = 0; c < Quad<T>::kCount; ++c) quad.values[c] = scale * sums[c];
    *reinterpret_cast<Quad<T>*>(target) = quad;
    return;
  }
  for (int c = 0; c < Quad<T>::kCount && c < left; ++c) target[c] = add ? target[c] + scale * sums[c] : scale * sums[c];
}

// ---- the gradient in f0 --------------------------------------------------------------------------

// Adds one level's share of the gradients in the f0 of the eight pixels of this warp in a tile.
template <bool kCareful, class T>
__device__ __forceinline__ void add_level(const GradientJob<T>& job, int64_t item, int level, int64_t tile,
                                          int64_t channel, T (&sums)[kOwned][Quad<T>::kCount]) {
  FactorMemory<T>& memory = factor_memory<T>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const Map& map = job.maps[level];
  const int64_t first_pixel = job.row(item, level, tile) * kPixels + warp * kOwned;
  const Origin origin = job.origins[first_pixel + lane % kOwned];
  const Box own = cells_under(map, origin.x, origin.y, job.side(), job.side());
  const Box box = around_lanes(own, kOwned);
  const int left = own.empty() ? 1 << 20 : static_cast<int>(origin.x - box.x0);
  const int top = own.empty() ? 1 << 20 : static_cast<int>(origin.y - box.y0);
  const int64_t height = box.height(), cells = box.width() * height;
  for (int64_t first = 0; first < cells; first += kBatch) {
    const int count = static_cast<int>(smaller<int64_t>(kBatch, cells - first));
    for (int begin = 0; begin < count; begin += kWarp) {  // the lanes stay together for the shuffles
      const int k = begin + lane;
      const int64_t cell = first + smaller(k, count - 1);
      const int64_t x = cell / height, y = cell % height;
      T factors[kOwned];
#pragma unroll
      for (int j = 0; j < kOwned; ++j) {
        const int64_t dx = x - __shfl_sync(kWholeWarp, left, j), dy = y - __shfl_sync(kWholeWarp, top, j);
        const bool inside = dx >= 0 && dx < job.side() && dy >= 0 && dy < job.side();
        factors[j] = inside ? job.kept[(first_pixel + j) * job.taps() + dx * job.side() + dy] : T(0);
      }
      if (k >= count) continue;
#pragma unroll
      for (int part = 0; part < kOwned / Quad<T>::kCount; ++part) {
        Quad<T> quad;
        for (int c = 0; c < Quad<T>::kCount; ++c) quad.values[c] = factors[part * Quad<T>::kCount + c];
        memory.factors[part][k] = quad;
      }
      memory.features_at[k] = ((box.y0 + y) * map.columns + box.x0 + x) * job.channels;
    }
    __syncwarp();
    with_kind<T>(map.kind, [&](auto zero) {
      using F = decltype(zero);
      const F* f1 = static_cast<const F*>(map.values) + (job.item + item) * map.batch_stride + channel;
      add_batch<kCareful>(f1, job.channels - channel, map.aligned, lane / job.lanes, kWarp / job.lanes, count, memory,
                          sums);
    });
    __syncwarp();  // the factors have been read
  }
}

template <bool kCareful, class T>
__device__ __forceinline__ void sum_pixels(const GradientJob<T>& job, int64_t item, int64_t tile, int64_t channel,
                                           T (&sums)[kOwned][Quad<T>::kCount]) {
  for (int j = 0; j < kOwned; ++j) {
    for (int c = 0; c < Quad<T>::kCount; ++c) sums[j][c] = 0;
  }
  for (int level = 0; level < job.levels; ++level) add_level<kCareful>(job, item, level, tile, channel, sums);
  join_lanes(job.lanes, sums);
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) gather_f0(GradientJob<T> job) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t index = blockIdx.x; index < job.items_in_hand * job.tiles_in_hand * job.chunks(); index += gridDim.x) {
    const int64_t channel = index % job.chunks() * job.chunk() + lane % job.lanes * Quad<T>::kCount;
    const int64_t tile = index / job.chunks() % job.tiles_in_hand, item = index / job.chunks() / job.tiles_in_hand;
    T sums[kOwned][Quad<T>::kCount];
    sum_pixels<false>(job, item, tile, channel, sums);
    if (!all_finite(sums)) sum_pixels<true>(job, item, tile, channel, sums);
    const int64_t left = job.channels - channel;
    if (lane >= job.lanes || left <= 0) continue;
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const Spot spot = spot_of(job, job.first_tile + tile, warp * kOwned + j);
      if (!spot.there) continue;
      T* target = job.grad_f0 + ((job.item + item) * job.pixels + spot.pixel) * job.channels + channel;
      store_sums(target, left, job.channels % Quad<T>::kCount == 0, false, job.scale, sums[j]);
    }
  }
}

// ---- the gradient in f1 --------------------------------------------------------------------------

// Eight cells of a level of an item, and the tiles [first, last) in hand that are summed over.
struct Region {
  int64_t item, x, y, first, last, row;  // row of tile 0 in hand
  int level;
};

// Adds the products of the pixels listed in shared memory.
template <bool kCareful, class T>
__device__ __forceinline__ void add_listed(const GradientJob<T>& job, const Region& region, int count, int64_t channel,
                                           T (&sums)[kOwned][Quad<T>::kCount]) {
  FactorMemory<T>& memory = factor_memory<T>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  __syncwarp();  // the list is there
#pragma unroll 4
  for (int index = lane; index < count * kOwned; index += kWarp) {
    const int k = index / kOwned, cell = index % kOwned;
    const int dx = memory.dx[k] + cell / kRegionRows, dy = memory.dy[k] + cell % kRegionRows;
    const bool inside = dx >= 0 && dx < job.side() && dy >= 0 && dy < job.side();
    memory.factors[cell / Quad<T>::kCount][k].values[cell % Quad<T>::kCount] =
        inside ? job.kept[memory.taps_at[k] + dx * job.side() + dy] : T(0);
  }
  __syncwarp();
  add_batch<kCareful>(job.f0 + (job.item + region.item) * job.f0_stride + channel, job.channels - channel,
                      job.f0_aligned, lane / job.lanes, kWarp / job.lanes, count, memory, sums);
  __syncwarp();  // list and factors have been read
}

template <bool kCareful, class T>
__device__ __forceinline__ void sum_region(const GradientJob<T>& job, const Region& region, int64_t channel,
                                           T (&sums)[kOwned][Quad<T>::kCount]) {
  FactorMemory<T>& memory = factor_memory<T>();
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int j = 0; j < kOwned; ++j) {
    for (int c = 0; c < Quad<T>::kCount; ++c) sums[j][c] = 0;
  }
  int count = 0;  // of pixels in the list
  for (int64_t base = region.first; base < region.last; base += kWarp) {
    bool touches = false;
    if (base + lane < region.last) {
      const Box box = job.footprints[region.row + base + lane];
      touches = box.x0 < region.x + kRegionColumns && region.x < box.x1 && box.y0 < region.y + kRegionRows &&
                region.y < box.y1;
    }
    for (unsigned votes = __ballot_sync(kWholeWarp, touches); votes != 0; votes &= votes - 1) {
      const int64_t tile = base + __ffs(static_cast<int>(votes)) - 1;
      const int64_t pixel = (region.row + tile) * kPixels + lane;
      const Origin origin = job.origins[pixel];
      const int64_t dx = region.x - origin.x, dy = region.y - origin.y;
      const bool shares = dx > -kRegionColumns && dx < job.side() && dy > -kRegionRows && dy < job.side();
      const unsigned sharing = __ballot_sync(kWholeWarp, shares);
      if (shares) {
        const int place = count + __popc(sharing & ((1u << lane) - 1));
        memory.features_at[place] = spot_of(job, job.first_tile + tile, lane).pixel * job.channels;
        memory.taps_at[place] = pixel * job.taps();
        memory.dx[place] = static_cast<int>(dx);
        memory.dy[place] = static_cast<int>(dy);
      }
      count += __popc(sharing);
      if (count <= kBatch - kWarp) continue;
      add_listed<kCareful>(job, region, count, channel, sums);
      count = 0;
    }
  }
  if (count > 0) add_listed<kCareful>(job, region, count, channel, sums);
  join_lanes(job.lanes, sums);
}

// Warps of a level.
template <class T>
__device__ __forceinline__ int64_t warps_of(const GradientJob<T>& job, int level) {
  return job.items_in_hand * job.targets[level].regions * job.targets[level].slices * job.chunks();
}

template <class T>
__global__ void __launch_bounds__(kTileThreads) gather_f1(GradientJob<T> job, int64_t warps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t number = int64_t{blockIdx.x} * kTileWarps + warp; number < warps;
       number += int64_t{gridDim.x} * kTileWarps) {
    Region region{};
    int64_t index = number;
    while (index >= warps_of(job, region.level)) index -= warps_of(job, region.level++);
    const Map& map = job.maps[region.level];
    const MapGradient<T>& target = job.targets[region.level];
    const int64_t across = (map.columns + kRegionColumns - 1) / kRegionColumns;
    region.x = index % target.regions % across * kRegionColumns;  // warps of a block have regions side by side
    region.y = index % target.regions / across * kRegionRows;
    index /= target.regions;
    const int64_t channel = index % job.chunks() * job.chunk() + lane % job.lanes * Quad<T>::kCount;
    index /= job.chunks();
    const int64_t slice = index % target.slices;
    region.item = index / target.slices;
    region.first = job.tiles_in_hand * slice / target.slices;
    region.last = job.tiles_in_hand * (slice + 1) / target.slices;
    region.row = job.row(region.item, region.level, 0);
    T sums[kOwned][Quad<T>::kCount];
    sum_region<false>(job, region, channel, sums);
    if (!all_finite(sums)) sum_region<true>(job, region, channel, sums);
    const int64_t left = job.channels - channel;
    if (lane >= job.lanes || left <= 0) continue;
    const bool whole = target.slices == 1;  // else the slices are added by add_slices
    const int64_t item = whole ? job.item + region.item : slice * job.items_in_hand + region.item;
    T* grad = (whole ? target.grad : target.sums) + item * map.rows * map.columns * job.channels + channel;
#pragma unroll
    for (int j = 0; j < kOwned; ++j) {
      const int64_t x = region.x + j / kRegionRows, y = region.y + j % kRegionRows;
      if (x >= map.columns || y >= map.rows) continue;
      store_sums(grad + (y * map.columns + x) * job.channels, left, job.channels % Quad<T>::kCount == 0,
                 whole && job.first_tile > 0, job.scale, sums[j]);
    }
  }
}

// Gradients of the levels whose tiles were summed in slices.
template <class T>
__global__ void __launch_bounds__(kThreads) add_slices(GradientJob<T> job, int64_t elements) {
  for (int64_t number = first_item(); number < elements; number += item_step()) {
    int64_t index = number;
    for (int level = 0; level < job.levels; ++level) {
      const MapGradient<T>& target = job.targets[level];
      const int64_t each = job.maps[level].rows * job.maps[level].columns * job.channels;
      const int64_t count = target.slices > 1 ? job.items_in_hand * each : 0;
      if (index >= count) {
        index -= count;
        continue;
      }
      T& grad = target.grad[job.item * each + index];
      T sum = job.first_tile > 0 ? grad : T(0);
      for (int64_t slice = 0; slice < target.slices; ++slice) sum += target.sums[slice * count + index];
      grad = sum;
      break;
    }
  }
}

}  // namespace flowfuse
