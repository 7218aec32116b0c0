// Content attention over neighbours: one thread a pixel and step; neighbours of a warp's pixels are read together.
#include <tuple>
#include <vector>

#include "cuda/launch.cuh"
#include "operators/propagation_weights.h"

namespace flowfuse::cuda {
namespace {

template <class T, class F>
struct Attention {
  AttentionSizes sizes;
  const F* query_key;
  const T* boundary;
  const T* strength;
  T scale;  // of the products of queries and keys
};

__device__ __forceinline__ float exponential(float x) { return ::expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }

struct Place {
  int64_t b, s, y, x;

  FLOWFUSE_INLINE int64_t pixel(const AttentionSizes& sizes) const { return y * sizes.width + x; }
};

__device__ __forceinline__ Place place_at(const AttentionSizes& sizes, int64_t index) {
  const int64_t x = index % sizes.width, row = index / sizes.width;
  return {row / sizes.height / sizes.steps, row / sizes.height % sizes.steps, row % sizes.height, x};
}

template <class T>
struct Strongest {
  T stop;
  int distance;  // in pixels along the way
};

// The strongest stop on the way from a pixel to its neighbour `distance` away.
template <class T, class F>
__device__ __forceinline__ Strongest<T> strongest_stop(const Attention<T, F>& params, const Place& at, int k,
                                                       int distance) {
  const AttentionSizes& sizes = params.sizes;
  const T* stop = params.boundary + (2 * at.b + 1) * sizes.plane() + at.pixel(sizes);
  const int64_t step = row_shift(k) * sizes.width + column_shift(k);
  Strongest<T> strongest{stop[0], 0};
  for (int m = 1; m <= distance && k != kCentre; ++m) {
    const T there = stop[m * step];
    if (there > strongest.stop) strongest = {there, m};
  }
  return strongest;
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads) attention(Attention<T, F> params, T* __restrict__ weights) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t items = sizes.batch * sizes.steps * sizes.plane();
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Place at = place_at(sizes, index);
    const int distance = 1 << at.s;
    const int64_t pixel = at.pixel(sizes);
    T scores[kNeighbours];
    int64_t ways[kNeighbours];  // to the neighbours; 0 for those outside, whose scores nobody reads
    bool inside[kNeighbours];
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      scores[k] = 0;
      inside[k] = reaches(at.y, at.x, k, distance, sizes.height, sizes.width);
      ways[k] = inside[k] ? distance * (row_shift(k) * sizes.width + column_shift(k)) : 0;
    }
    for (int64_t c = 0; c < sizes.channels; ++c) {
      const T query = static_cast<T>(params.query_key[sizes.query(at.b, at.s, c) * sizes.plane() + pixel]);
      const F* key = params.query_key + sizes.key(at.b, at.s, c) * sizes.plane() + pixel;
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) scores[k] += query * static_cast<T>(key[ways[k]]);
    }
    const T* edge = params.boundary + 2 * at.b * sizes.plane() + pixel;
    const T edge_strength = params.strength[2 * at.s], stop_strength = params.strength[2 * at.s + 1];
    T top = -static_cast<T>(INFINITY), sum = 0;
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      if (!inside[k]) continue;
      scores[k] = scores[k] * params.scale + edge_strength * edge[ways[k]] -
                  stop_strength * strongest_stop(params, at, k, distance).stop;
      top = larger(top, scores[k]);
    }
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      scores[k] = inside[k] ? exponential(scores[k] - top) : T(0);
      sum += scores[k];
    }
    const T share = 1 / sum;
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      weights[sizes.weight(at.b, at.s, k) * sizes.plane() + pixel] = scores[k] * share;
    }
  }
}

// The gradients of the scores, the strongest stops of their ways, and the gradients of the queries.
template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    attention_slopes(Attention<T, F> params, const T* __restrict__ weights, const T* __restrict__ grad,
                     T* __restrict__ slopes, int16_t* __restrict__ farthest, F* __restrict__ grad_query_key) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t items = sizes.batch * sizes.steps * sizes.plane();
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Place at = place_at(sizes, index);
    const int distance = 1 << at.s;
    const int64_t pixel = at.pixel(sizes);
    T slope[kNeighbours], mean = 0;
    int64_t ways[kNeighbours];
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      const int64_t place = sizes.weight(at.b, at.s, k) * sizes.plane() + pixel;
      mean += weights[place] * grad[place];
    }
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      const int64_t place = sizes.weight(at.b, at.s, k) * sizes.plane() + pixel;
      const bool inside = reaches(at.y, at.x, k, distance, sizes.height, sizes.width);
      slope[k] = inside ? weights[place] * (grad[place] - mean) : T(0);
      ways[k] = inside ? distance * (row_shift(k) * sizes.width + column_shift(k)) : 0;
      slopes[place] = slope[k];
      farthest[place] =
          inside ? static_cast<int16_t>(strongest_stop(params, at, k, distance).distance) : static_cast<int16_t>(255);
    }
    for (int64_t c = 0; c < sizes.channels; ++c) {
      const F* key = params.query_key + sizes.key(at.b, at.s, c) * sizes.plane() + pixel;
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) sum += slope[k] * static_cast<T>(key[ways[k]]);
      grad_query_key[sizes.query(at.b, at.s, c) * sizes.plane() + pixel] = static_cast<F>(params.scale * sum);
    }
  }
}

// The gradients of the keys: each pixel gathers from those whose neighbour it is.
template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    key_gradient(Attention<T, F> params, const T* __restrict__ slopes, F* __restrict__ grad_query_key) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t items = sizes.batch * sizes.steps * sizes.plane();
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Place at = place_at(sizes, index);
    const int64_t distance = int64_t{1} << at.s, pixel = at.pixel(sizes);
    T slope[kNeighbours];
    int64_t ways[kNeighbours];
#pragma unroll
    for (int k = 0; k < kNeighbours; ++k) {
      const bool inside = reaches(at.y, at.x, k, -distance, sizes.height, sizes.width);
      ways[k] = inside ? -distance * (row_shift(k) * sizes.width + column_shift(k)) : 0;
      slope[k] = inside ? slopes[sizes.weight(at.b, at.s, k) * sizes.plane() + pixel + ways[k]] : T(0);
    }
    for (int64_t c = 0; c < sizes.channels; ++c) {
      const F* query = params.query_key + sizes.query(at.b, at.s, c) * sizes.plane() + pixel;
      T sum = 0;
#pragma unroll
      for (int k = 0; k < kNeighbours; ++k) sum += slope[k] * static_cast<T>(query[ways[k]]);
      grad_query_key[sizes.key(at.b, at.s, c) * sizes.plane() + pixel] = static_cast<F>(params.scale * sum);
    }
  }
}

// The gradients of the boundary, gathered from the pixels whose ways come by.
template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    boundary_gradient(Attention<T, F> params, const T* __restrict__ slopes, const int16_t* __restrict__ farthest,
                      T* __restrict__ grad_boundary) {
  const AttentionSizes& sizes = params.sizes;
  const int64_t items = sizes.batch * sizes.plane();
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const int64_t pixel = index % sizes.plane(), b = index / sizes.plane();
    const int64_t y = pixel / sizes.width, x = pixel % sizes.width;
    T edge = 0, stop = 0;
    for (int64_t s = 0; s < sizes.steps; ++s) {
      const int distance = 1 << s;
      T edge_sum = 0, stop_sum = 0;
      for (int k = 0; k < kNeighbours; ++k) {
        const int64_t plane = sizes.weight(b, s, k) * sizes.plane();
        const int64_t step = row_shift(k) * sizes.width + column_shift(k);
        for (int m = 0; m <= (k == kCentre ? 0 : distance); ++m) {
          if (!reaches(y, x, k, -m, sizes.height, sizes.width)) break;
          const int64_t from = plane + pixel - m * step;
          if (farthest[from] == m) stop_sum += slopes[from];
        }
        if (reaches(y, x, k, -distance, sizes.height, sizes.width)) edge_sum += slopes[plane + pixel - distance * step];
      }
      edge += params.strength[2 * s] * edge_sum;
      stop -= params.strength[2 * s + 1] * stop_sum;
    }
    grad_boundary[2 * b * sizes.plane() + pixel] = edge;
    grad_boundary[(2 * b + 1) * sizes.plane() + pixel] = stop;
  }
}

// The gradients of the strengths, summed over each row by a warp: grad_strength [B, h, S, 2].
template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    strength_gradient(Attention<T, F> params, const T* __restrict__ slopes, T* __restrict__ grad_strength) {
  const AttentionSizes& sizes = params.sizes;
  const int lane = threadIdx.x % kWarp;
  const int64_t warp = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / kWarp, warps = item_step() / kWarp;
  const int64_t rows = sizes.batch * sizes.height * sizes.steps;
  for (int64_t row = warp; row < rows; row += warps) {
    Place at{row / sizes.steps / sizes.height, row % sizes.steps, row / sizes.steps % sizes.height, 0};
    const int distance = 1 << at.s;
    T edge_sum = 0, stop_sum = 0;
    for (at.x = lane; at.x < sizes.width; at.x += kWarp) {
      const int64_t pixel = at.pixel(sizes);
      for (int k = 0; k < kNeighbours; ++k) {
        if (!reaches(at.y, at.x, k, distance, sizes.height, sizes.width)) continue;
        const T slope = slopes[sizes.weight(at.b, at.s, k) * sizes.plane() + pixel];
        const int64_t way = distance * (row_shift(k) * sizes.width + column_shift(k));
        edge_sum += slope * params.boundary[2 * at.b * sizes.plane() + pixel + way];
        stop_sum -= slope * strongest_stop(params, at, k, distance).stop;
      }
    }
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      edge_sum += __shfl_down_sync(kWholeWarp, edge_sum, offset);
      stop_sum += __shfl_down_sync(kWholeWarp, stop_sum, offset);
    }
    if (lane == 0) {
      grad_strength[2 * row] = edge_sum;
      grad_strength[2 * row + 1] = stop_sum;
    }
  }
}

// Tensors that are contiguous.
template <class T, class F>
Attention<T, F> prepare(const Tensor& query_key, const Tensor& boundary, const Tensor& strength) {
  Attention<T, F> params{attention_sizes(query_key, strength), data<F>(query_key), data<T>(boundary), data<T>(strength),
                         T(0)};
  params.scale = static_cast<T>(1 / std::sqrt(static_cast<double>(params.sizes.channels)));
  return params;
}

std::vector<int64_t> weights_shape(const AttentionSizes& sizes) {
  return {sizes.batch, sizes.steps, kNeighbours, sizes.height, sizes.width};
}

Tensor propagation_weights(Tensor query_key, Tensor boundary, Tensor strength) {
  const char* op = "propagation_weights";
  check_propagation_weights(op, query_key, boundary, strength);
  const DeviceCall call(op, query_key);
  const Tensor weights =
      allocate(op, query_key, weights_shape(attention_sizes(query_key, strength)), strength.scalar_type());
  if (weights.numel() == 0) return weights;
  const Tensor features = torch::stable::contiguous(query_key), maps = torch::stable::contiguous(boundary);
  const Tensor strengths = torch::stable::contiguous(strength);
  with_feature_type(query_key.scalar_type(), [&](auto feature) {
    using F = decltype(feature);
    using T = SumType<F>;
    call.launch(attention<T, F>, blocks_for(weights.numel() / kNeighbours), kThreads, 0,
                prepare<T, F>(features, maps, strengths), mutable_data<T>(weights));
  });
  return weights;
}

std::tuple<Tensor, Tensor, Tensor> propagation_weights_backward(Tensor grad, Tensor query_key, Tensor boundary,
                                                                Tensor strength, Tensor weights) {
  const char* op = "propagation_weights_backward";
  check_propagation_weights(op, query_key, boundary, strength);
  const AttentionSizes sizes = attention_sizes(query_key, strength);
  const ScalarType dtype = strength.scalar_type();
  check_gradient(op, grad, weights_shape(sizes), dtype, "query_key", query_key);
  check_shape(op, "weights", weights, weights_shape(sizes));
  check_dtype(op, "weights", weights, {dtype});
  const DeviceCall call(op, query_key);
  const Tensor grad_query_key = allocate(op, query_key, shape_of(query_key), query_key.scalar_type());
  const Tensor grad_boundary = allocate(op, query_key, shape_of(boundary), dtype);
  const Tensor grad_strength = allocate(op, query_key, {sizes.batch, sizes.height, sizes.steps, 2}, dtype);
  if (grad.numel() == 0) {
    call.clear(grad_strength);
    return {grad_query_key, grad_boundary, grad_strength};
  }
  const Tensor g = torch::stable::contiguous(grad), shares = torch::stable::contiguous(weights);
  const Tensor features = torch::stable::contiguous(query_key), maps = torch::stable::contiguous(boundary);
  const Tensor strengths = torch::stable::contiguous(strength);
  const Tensor slopes = allocate(op, query_key, weights_shape(sizes), dtype);
  const Tensor farthest = allocate(op, query_key, weights_shape(sizes), ScalarType::Short);
  const int64_t places = sizes.batch * sizes.steps * sizes.plane();
  with_feature_type(query_key.scalar_type(), [&](auto feature) {
    using F = decltype(feature);
    using T = SumType<F>;
    const Attention<T, F> params = prepare<T, F>(features, maps, strengths);
    call.launch(attention_slopes<T, F>, blocks_for(places), kThreads, 0, params, data<T>(shares), data<T>(g),
                mutable_data<T>(slopes), mutable_data<int16_t>(farthest), mutable_data<F>(grad_query_key));
    call.launch(key_gradient<T, F>, blocks_for(places), kThreads, 0, params, data<T>(slopes),
                mutable_data<F>(grad_query_key));
    call.launch(boundary_gradient<T, F>, blocks_for(sizes.batch * sizes.plane()), kThreads, 0, params, data<T>(slopes),
                data<int16_t>(farthest), mutable_data<T>(grad_boundary));
    call.launch(strength_gradient<T, F>, blocks_for(sizes.batch * sizes.height * sizes.steps * kWarp), kThreads, 0,
                params, data<T>(slopes), mutable_data<T>(grad_strength));
  });
  return {grad_query_key, grad_boundary, grad_strength};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("propagation_weights", TORCH_BOX(&flowfuse::cuda::propagation_weights));
  m.impl("propagation_weights_backward", TORCH_BOX(&flowfuse::cuda::propagation_weights_backward));
}
