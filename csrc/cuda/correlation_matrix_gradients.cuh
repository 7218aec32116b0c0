// Gradients of features on demand by the tensor cores. As in correlation_gradients.cuh a warp owns 8 pixels, or 8 cells
// of a level, and 64 or 128 channels of them. The eight are the columns of a product, the channels its rows, and summed
// over are the cells, or pixels, that share taps with them, 16 at a time.
//
// A lane loads 16 bytes of channels of four of these: two neighbours, channel by channel, make an operand, so that
// neither shared memory nor a transpose is needed. The taps' gradients, the other operand, go from memory into the
// registers of the lanes that have them in a product.
//
// They are float32, taken as sums of two bfloat16: off by up to 2^-17 of themselves. So are float32 features, of which
// three of four products are made; bfloat16 features are exact. float16 ones come as float32: taps' gradients need not
// fit into float16.
#pragma once

#include "cuda/correlation_gradients.cuh"
#include "cuda/correlation_matrix.cuh"

namespace flowfuse::cuda {

constexpr int kSources = 4;  // of a lane: 16 of a product

template <class F>
constexpr int kSet = 8 * kLaneChannels<F>;  // channels that eight lanes load together: four or two products

// Cells or pixels of a lane: where their features lie, and their factors for the lane's column, number lane / 4.
struct Sources {
  int64_t at[kSources];
  float factors[kSources];
};

// Blocks on a multiprocessor, at least: of 128 channels a lane has twice as many sums and features.
template <int kChannels>
constexpr int kGatherBlocks = kChannels > 64 ? kMatrixBlocks - 1 : kMatrixBlocks;

// Channels of a warp, at most: a float takes the registers of two bfloat16.
template <class F>
constexpr int kMostChannels = kSplit<F> ? 64 : 128;

// The sums of a lane: channel 2 w of its 16 bytes in columns 2 (lane % 4) and the next, then channel 2 w + 1.
template <int kChannels>
using GatherSums = float[kChannels / 16][4];

// Products of a set of channels; `features` is that of the lane in the row number 0.
template <class F>
__device__ __forceinline__ void add_set(const F* features, bool there, const Sources& sources,
                                        const unsigned (&factors)[2], const unsigned (&small_factors)[2],
                                        float (*sums)[4]) {
  Quad<unsigned> rows[kSources] = {};
#pragma unroll
  for (int n = 0; n < kSources; ++n) {
    if (there) rows[n] = *reinterpret_cast<const Quad<unsigned>*>(features + sources.at[n]);
  }
#pragma unroll
  for (int w = 0; w < kLaneChannels<F> / 2; ++w) {
    unsigned values[4];
    if constexpr (kSplit<F>) {
      unsigned small[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) {  // channel 2 w + n % 2 of sources 0 and 1, then of 2 and 3
        const Quad<unsigned>&first = rows[n / 2 * 2], &second = rows[n / 2 * 2 + 1];
        split(float_of(first.values[2 * w + n % 2]), float_of(second.values[2 * w + n % 2]), values[n], small[n]);
      }
      multiply_matrices<BFloat16>(sums[w], small, factors);
    } else {
#pragma unroll
      for (int n = 0; n < 4; n += 2) {
        const unsigned first = rows[n].values[w], second = rows[n + 1].values[w];
        values[n] = (first & 0xffffu) | second << 16;
        values[n + 1] = first >> 16 | (second & 0xffff0000u);
      }
    }
    multiply_matrices<BFloat16>(sums[w], values, small_factors);
    multiply_matrices<BFloat16>(sums[w], values, factors);
  }
}

// Adds the products of sixteen sources. `features`: of this lane's first channel in the row number 0, behind which
// there are `left`.
template <int kChannels, class F>
__device__ __forceinline__ void add_sources(const F* features, int64_t left, const Sources& sources,
                                            GatherSums<kChannels>& sums) {
  unsigned factors[2], small_factors[2];
  split(sources.factors[0], sources.factors[1], factors[0], small_factors[0]);
  split(sources.factors[2], sources.factors[3], factors[1], small_factors[1]);
#pragma unroll
  for (int set = 0; set < kChannels / kSet<F>; ++set) {
    add_set(features + set * kSet<F>, set * kSet<F> < left, sources, factors, small_factors,
            sums + set * (kLaneChannels<F> / 2));
  }
}

// Stores column number `p` of the two that a lane has. `target` and `left` as in add_sources.
template <int kChannels, class F>
__device__ __forceinline__ void store_column(float* target, int64_t left, bool add, float scale, int p,
                                             const GatherSums<kChannels>& sums) {
#pragma unroll
  for (int pair = 0; pair < kChannels / 32; ++pair) {
    const int set = pair * 4 / kLaneChannels<F> * kSet<F>, channel = set + pair * 4 % kLaneChannels<F>;
    if (set >= left) break;
    const float values[4] = {sums[2 * pair][p], sums[2 * pair][2 + p], sums[2 * pair + 1][p],
                             sums[2 * pair + 1][2 + p]};
    store_sums(target + channel, 4, true, add, scale, values);
  }
}

template <class F>
__device__ __forceinline__ int64_t lane_channel() {
  return static_cast<int>(threadIdx.x) % kWarp / 4 * kLaneChannels<F>;
}

// Adds one level's share of the gradients in the f0 of the eight pixels of this warp in a tile: of all together, or in
// groups where their windows lie far apart.
template <int kChannels, class F>
__device__ __forceinline__ void add_level_by_matrices(const GradientParams<float, F>& params, int item, int level,
                                                      int tile, int64_t channel, GatherSums<kChannels>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, column = lane / 4;
  const FeatureMap<F>& map = params.maps[level];
  const int side = params.tap_side();
  const int64_t first_pixel = params.row(item, level, tile) * kPixels + threadIdx.x / kWarp * kWarpPixels;
  const Origin other = params.origins[first_pixel + lane % kWarpPixels];
  const PixelGroups groups = group_pixels(cells_under(map, other.x, other.y, side, side));
  const Origin origin = params.origins[first_pixel + column];
  const float* taps = params.kept + (first_pixel + column) * params.tap_count();
  for (int number = 0; number < kWarpPixels / groups.size; ++number) {
    const Box box = box_of(groups, number);
    if (box.empty()) continue;
    const bool counts = column / groups.size == number && origin.x != kFar;
    const int left = counts ? static_cast<int>(origin.x - box.x0) : 1 << 20,
              top = counts ? static_cast<int>(origin.y - box.y0) : 1 << 20;
    const F* features = map.values + (params.item + item) * map.batch_stride +
                        (box.y0 * map.columns + box.x0) * params.channels + channel;
    const int height = static_cast<int>(box.height()), cells = static_cast<int>(box.width()) * height;
    Walk cell(lane % 4 * kSources, height);  // column by column, as taps lie
    for (int first = 0; first < cells; first += 4 * kSources) {
      Sources sources;
#pragma unroll
      for (int n = 0; n < kSources; ++n) {
        const bool there = first + lane % 4 * kSources + n < cells;  // else a factor of 0 and a cell of the box
        const int dx = cell.line - left, dy = cell.at - top;
        const bool inside = there && dx >= 0 && dx < side && dy >= 0 && dy < side;
        const float tap = taps[inside ? dx * side + dy : 0];  // without a branch: all loads under way
        sources.factors[n] = inside ? tap : 0.0f;
        sources.at[n] = there ? (cell.at * map.columns + cell.line) * params.channels : 0;
        cell.advance(1);
      }
      cell.advance(3 * kSources);
      add_sources<kChannels>(features, params.channels - channel, sources, sums);
    }
  }
}

template <int kChannels, class F>
__global__ void __launch_bounds__(kTileThreads, kGatherBlocks<kChannels>)
    gather_f0_by_matrices(GradientParams<float, F> params) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t index = blockIdx.x; index < params.items_in_hand * params.tiles_in_hand * params.chunks();
       index += gridDim.x) {
    const int64_t channel = index % params.chunks() * kChannels + lane_channel<F>();
    const int tile = static_cast<int>(index / params.chunks() % params.tiles_in_hand);
    const int item = static_cast<int>(index / params.chunks() / params.tiles_in_hand);
    GatherSums<kChannels> sums = {};
    for (int level = 0; level < params.levels; ++level) {
      add_level_by_matrices<kChannels>(params, item, level, tile, channel, sums);
    }
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const Spot spot = spot_of(params, params.first_tile + tile, warp * kWarpPixels + lane % 4 * 2 + p);
      if (!spot.there) continue;
      float* target = params.grad_f0 + ((params.item + item) * params.pixels + spot.pixel) * params.channels + channel;
      store_column<kChannels, F>(target, params.channels - channel, false, params.scale, p, sums);
    }
  }
}

// Adds the products of the `count` pixels listed with the cells of a region.
template <int kChannels, class F>
__device__ __forceinline__ void add_listed_by_matrices(const GradientParams<float, F>& params, const F* features,
                                                       int64_t left, int count, const PixelList& list,
                                                       GatherSums<kChannels>& sums) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, cell = lane / 4, side = params.tap_side();
  __syncwarp();  // the list is there
  for (int first = 0; first < count; first += 4 * kSources) {
    Sources sources;
#pragma unroll
    for (int n = 0; n < kSources; ++n) {
      const int k = first + lane % 4 * kSources + n, place = smaller(k, count - 1);
      const int dx = list.dx[place] + cell / kRegionRows, dy = list.dy[place] + cell % kRegionRows;
      const bool inside = k < count && dx >= 0 && dx < side && dy >= 0 && dy < side;
      const float tap = params.kept[list.taps_at[place] + (inside ? dx * side + dy : 0)];  // as above: no branch
      sources.factors[n] = inside ? tap : 0.0f;
      sources.at[n] = list.features_at[place];
    }
    add_sources<kChannels>(features, left, sources, sums);
  }
  __syncwarp();  // the list has been read
}

template <int kChannels, class F>
__global__ void __launch_bounds__(kTileThreads, kGatherBlocks<kChannels>)
    gather_f1_by_matrices(GradientParams<float, F> params, int64_t warps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  PixelList& list = shared_memory<PixelList>()[warp];
  for (int64_t number = int64_t{blockIdx.x} * kTileWarps + warp; number < warps;
       number += int64_t{gridDim.x} * kTileWarps) {
    const RegionShare<float> share = share_of(params, number);
    const Region& region = share.region;
    const FeatureMap<F>& map = params.maps[region.level];
    const int64_t channel = share.channel + lane_channel<F>(), left = params.channels - channel;
    const F* features = params.f0 + (params.item + region.item) * params.f0_stride + channel;
    GatherSums<kChannels> sums = {};
    visit_pixels(params, region, list,
                 [&](int count) { add_listed_by_matrices<kChannels>(params, features, left, count, list, sums); });
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int j = lane % 4 * 2 + p;
      const int64_t x = region.x + j / kRegionRows, y = region.y + j % kRegionRows;
      if (x >= map.columns || y >= map.rows) continue;
      store_column<kChannels, F>(share.target + (y * map.columns + x) * params.channels + channel, left, share.add,
                                 params.scale, p, sums);
    }
  }
}

}  // namespace flowfuse::cuda
