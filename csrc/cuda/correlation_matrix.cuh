// Products of features on demand by the tensor cores (mma.sync m16n8k16, compute capability 8.0 and later): the taps of
// a warp tile.
//
// The eight pixels of a warp tile are the columns of a product of matrices, 16 cells of the box around their windows its
// rows, and what is summed over are the channels. A box of 13 x 11 cells, that of radius 4 where windows lie as the
// pixels do, fills nine such products to 99 %. A lane loads 16 bytes of a row as they lie in memory, since the order of
// the channels in a sum is free so long as both factors have the same: so operands need no transpose and no shared
// memory. The boxes of the four warps of a block overlap, and are gone through in the same order: a row that one of them
// has loaded is in the first-level cache for the others. Fragments of the pixels stay in registers meanwhile.
//
// Where windows lie far apart, the pixels are taken in groups of four, two or one, whatever needs the fewest products.
//
// Features of half precision are multiplied exactly and added in float32. A float32 is taken as a sum of two bfloat16,
// off by up to 2^-17 of itself, and three of the four products of two such sums are made.
#pragma once

#include "cuda/correlation_tiles.cuh"

namespace flowfuse::cuda {

constexpr int kMatrixRows = 16;  // of a product
#ifndef FLOWFUSE_MATRIX_BLOCKS
#define FLOWFUSE_MATRIX_BLOCKS 4
#endif
constexpr int kMatrixBlocks = FLOWFUSE_MATRIX_BLOCKS;  // on a multiprocessor, at least: 128 registers a thread
constexpr int kMostSlabs = 4;                          // of a pixel in registers: 128 or, of floats, 64 channels

template <class F>
constexpr bool kSplit = std::is_same_v<F, float>;  // into two parts of half precision
template <class F>
constexpr int kLaneChannels = 16 / static_cast<int>(sizeof(F));  // of a load
template <class F>
constexpr int kSlab = 4 * kLaneChannels<F>;  // channels that four lanes load together

// What a lane has of a row: of halves 8 channels as they are, two steps of 16 channels of a product; of floats 4
// channels, one step: the first parts in words 0 and 1, the second ones in words 2 and 3.
struct Words {
  unsigned word[4];
};

__device__ __forceinline__ float float_of(unsigned bits) {
#if defined(__CUDA_ARCH__)
  return __uint_as_float(bits);
#else
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
#endif
}

// Two floats rounded to bfloat16, the first in the lower bits.
__device__ __forceinline__ unsigned pack_bfloat16(float first, float second) {
#if defined(__CUDA_ARCH__)
  unsigned packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(packed) : "f"(second), "f"(first));
  return packed;
#else
  return BFloat16(first).x | static_cast<unsigned>(BFloat16(second).x) << 16;
#endif
}

// Two floats as sums of two bfloat16.
__device__ __forceinline__ void split(float first, float second, unsigned& high, unsigned& low) {
  high = pack_bfloat16(first, second);
  low = pack_bfloat16(first - float_of(high << 16), second - float_of(high & 0xffff0000u));
}

// 16 bytes of a row, 0 where they are not `there`.
template <class F>
__device__ __forceinline__ Words load_words(const F* row, bool there) {
  if (!there) return {};
  Words words;
  if constexpr (kSplit<F>) {
    const Quad<float> quad = *reinterpret_cast<const Quad<float>*>(row);
    split(quad.values[0], quad.values[1], words.word[0], words.word[2]);
    split(quad.values[2], quad.values[3], words.word[1], words.word[3]);
  } else {
    const Quad<unsigned> quad = *reinterpret_cast<const Quad<unsigned>*>(row);
    for (int n = 0; n < 4; ++n) words.word[n] = quad.values[n];
  }
  return words;
}

// Adds the products of rows g and g + 8 with a column, all of the same slab.
template <class F>
__device__ __forceinline__ void multiply_slab(float (&sums)[4], const Words& row, const Words& lower,
                                              const Words& column) {
  using M = std::conditional_t<kSplit<F>, BFloat16, F>;
  const unsigned (&r)[4] = row.word, (&l)[4] = lower.word, (&c)[4] = column.word;
  if constexpr (kSplit<F>) {
    multiply_matrices<M>(sums, {r[2], l[2], r[3], l[3]}, {c[0], c[1]});  // the small ones first
    multiply_matrices<M>(sums, {r[0], l[0], r[1], l[1]}, {c[2], c[3]});
    multiply_matrices<M>(sums, {r[0], l[0], r[1], l[1]}, {c[0], c[1]});
  } else {
    multiply_matrices<M>(sums, {r[0], l[0], r[1], l[1]}, {c[0], c[1]});
    multiply_matrices<M>(sums, {r[2], l[2], r[3], l[3]}, {c[2], c[3]});
  }
}

// The eight pixels of a warp tile in groups of 1, 2, 4 or 8 that are multiplied together; and the box of the group of
// this lane's pixel, number lane % 8.
struct PixelGroups {
  int size;
  Box box;
};

// The groups that need the fewest products.
__device__ __forceinline__ PixelGroups group_pixels(const Box& own) {
  PixelGroups best{};
  int64_t fewest = 0;
  Box box = own;
  for (int size = 1; size <= kWarpPixels; size *= 2) {
    if (size > 1) {
      const int step = size / 2;
      box = enclosing(box, {__shfl_xor_sync(kWholeWarp, box.x0, step), __shfl_xor_sync(kWholeWarp, box.y0, step),
                            __shfl_xor_sync(kWholeWarp, box.x1, step), __shfl_xor_sync(kWholeWarp, box.y1, step)});
    }
    int64_t products = (box.width() * box.height() + kMatrixRows - 1) / kMatrixRows;
    for (int step = size; step < kWarpPixels; step *= 2) products += __shfl_xor_sync(kWholeWarp, products, step);
    if (size == 1 || products <= fewest) {
      fewest = products;
      best = {size, box};
    }
  }
  return best;
}

// The box of a group, in all lanes.
__device__ __forceinline__ Box box_of(const PixelGroups& groups, int number) {
  const int source = number * groups.size;
  return {__shfl_sync(kWholeWarp, groups.box.x0, source), __shfl_sync(kWholeWarp, groups.box.y0, source),
          __shfl_sync(kWholeWarp, groups.box.x1, source), __shfl_sync(kWholeWarp, groups.box.y1, source)};
}

// Position of a cell in a box that is gone through line by line, `length` cells each.
struct Walk {
  int line, at, length;

  __device__ __forceinline__ Walk(int index, int length_)
      : line(index / length_), at(index % length_), length(length_) {}
  __device__ __forceinline__ void advance(int steps) {
    for (at += steps; at >= length; at -= length) ++line;
  }
};

// Shared memory of a block.
struct MatrixMemory {
  WindowPart parts[kTileWarps];  // the same for each warp: not in registers, which hold fragments
  Window<float> windows[kPixels];
  float sums[kTileWarps][kPixels][2];  // of gradients in the coordinates
  float taps[1];                       // [kPixels][stride], and what the launch adds
};

template <class F>
size_t matrix_bytes(const FeatureLookup<float, F>& params) {
  const int side = 2 * params.radius + 2;
  return sizeof(MatrixMemory) + kPixels * tap_stride(params.part_size + 1, side) * sizeof(float);
}

// First taps of the two pixels whose sums a lane has, in a box; far away for pixels that are not in its group.
struct Origins {
  int x[2], y[2];
};

// Adds the products of kSlabs slabs of channels, the first of them at `begin`, of a warp's pixels with the cells of a
// box to their taps. f0 is the pixel of this lane's column, where it is `there`.
template <int kSlabs, class F>
__device__ __forceinline__ void multiply_box(const FeatureLookup<float, F>& params, const WindowPart& part, const F* f0,
                                             bool there, int begin, const Box& box, const Origins& origins,
                                             float* taps) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, g = lane / 4, q = lane % 4;
  const FeatureMap<F>& map = params.maps[part.level];
  const int channels = static_cast<int>(params.channels), channel = begin + q * kLaneChannels<F>;
  Words pixel[kSlabs];
#pragma unroll
  for (int slab = 0; slab < kSlabs; ++slab) {
    const int c = channel + slab * kSlab<F>;
    pixel[slab] = load_words(f0 + c, there && c < channels);
  }
  const F* f1 = map.values + part.b * map.batch_stride + (box.y0 * map.columns + box.x0) * params.channels + channel;
  const int width = static_cast<int>(box.width()), count = width * static_cast<int>(box.height());
  const int64_t line_step = map.columns * params.channels;
  Walk upper(g, width), lower(g + 8, width);
  for (int first = 0; first < count; first += kMatrixRows) {
    const bool inside[2] = {first + g < count, first + g + 8 < count};
    const F* rows[2] = {f1 + (inside[0] ? upper.line * line_step + upper.at * params.channels : 0),
                        f1 + (inside[1] ? lower.line * line_step + lower.at * params.channels : 0)};
    float sums[4] = {};
#pragma unroll
    for (int slab = 0; slab < kSlabs; ++slab) {
      const bool left = channel + slab * kSlab<F> < channels;
      multiply_slab<F>(sums, load_words(rows[0] + slab * kSlab<F>, left), load_words(rows[1] + slab * kSlab<F>, left),
                       pixel[slab]);
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const Walk& cell = half ? lower : upper;
#pragma unroll
      for (int p = 0; p < 2; ++p) {
        const int dx = cell.at - origins.x[p], dy = cell.line - origins.y[p];
        if (!inside[half] || dx < 0 || dx >= part.columns || dy < 0 || dy >= params.tap_side()) continue;
        float& tap = taps[(2 * q + p) * part.stride + dx * params.tap_side() + dy];
        const float value = params.scale * sums[2 * half + p];
        tap = begin == 0 ? value : tap + value;
      }
    }
    upper.advance(kMatrixRows);
    lower.advance(kMatrixRows);
  }
}

// All channels, as many slabs at a time as are left.
template <class F>
__device__ __forceinline__ void multiply_channels(const FeatureLookup<float, F>& params, const WindowPart& part,
                                                  const F* f0, bool there, const Box& box, const Origins& origins,
                                                  float* taps) {
  int begin = 0;
  const auto slabs_left = [&] { return (static_cast<int>(params.channels) - begin + kSlab<F> - 1) / kSlab<F>; };
  for (; slabs_left() >= kMostSlabs; begin += kMostSlabs * kSlab<F>) {
    multiply_box<kMostSlabs>(params, part, f0, there, begin, box, origins, taps);
  }
  if (slabs_left() >= 2) {
    multiply_box<2>(params, part, f0, there, begin, box, origins, taps);
    begin += 2 * kSlab<F>;
  }
  if (slabs_left() >= 1) multiply_box<1>(params, part, f0, there, begin, box, origins, taps);
}

// Taps of a part of the windows of a tile into shared memory; outside the map they are 0. Ends with a barrier.
template <class F>
__device__ __forceinline__ void compute_taps_by_matrices(const FeatureLookup<float, F>& params, const WindowPart& which,
                                                         MatrixMemory& memory) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int own = warp * kWarpPixels;
  WindowPart& part = memory.parts[warp];
  if (lane == 0) part = which;
  __syncwarp();
  const FeatureMap<F>& map = params.maps[part.level];
  float* taps = memory.taps + own * part.stride;
  for (int k = lane; k < kWarpPixels * part.stride; k += kWarp) taps[k] = 0;
  const Window<float> window =
      window_of(params, part.b, spot_of(params, part.number, own + lane % kWarpPixels), part.level);
  const bool near = window.reach == Reach::kNear;
  if (lane < kWarpPixels) memory.windows[own + lane] = window;
  const int64_t x = near ? window.x + part.first : kFar, y = near ? window.y : kFar;
  const PixelGroups groups = group_pixels(cells_under(map, x, y, part.columns, params.tap_side()));
  const Spot column = spot_of(params, part.number, own + lane / 4);
  const F* f0 = params.f0 + part.b * params.f0_stride + column.pixel * params.channels;
  __syncwarp();  // the taps are 0
  for (int number = 0; number < kWarpPixels / groups.size; ++number) {
    const Box box = box_of(groups, number);
    Origins origins;
#pragma unroll
    for (int p = 0; p < 2; ++p) {
      const int source = lane % 4 * 2 + p;
      const int64_t left = __shfl_sync(kWholeWarp, x, source) - box.x0,
                    top = __shfl_sync(kWholeWarp, y, source) - box.y0;
      const bool counts = source / groups.size == number && left < kFar / 2;
      origins.x[p] = counts ? static_cast<int>(left) : 1 << 20;
      origins.y[p] = counts ? static_cast<int>(top) : 1 << 20;
    }
    if (!box.empty()) multiply_channels(params, part, f0, column.there, box, origins, taps);
  }
  __syncthreads();
}

}  // namespace flowfuse::cuda
