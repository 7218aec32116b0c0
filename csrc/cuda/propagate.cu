// Weighted means of neighbours, step by step: one thread a pixel and kChannels channels, one launch a step.
#include <tuple>

#include "cuda/launch.cuh"
#include "operators/propagate.h"

namespace flowfuse::cuda {
namespace {

constexpr int kChannels = 4;  // that share a pixel's weights

struct Place {
  int64_t b, group, y, x;
};

__device__ __forceinline__ Place place_at(const PropagationSizes& sizes, int64_t index, int64_t groups) {
  const int64_t x = index % sizes.width, row = index / sizes.width;
  return {row / sizes.height / groups, row / sizes.height % groups, row % sizes.height, x};
}

// to(x) = sum over neighbours of weight(x) from(x + way). Backwards: of weight(x - way) from(x - way).
template <bool kBackwards, class T, class From, class To>
__global__ void __launch_bounds__(kThreads)
    propagate_step(PropagationSizes sizes, const T* __restrict__ weights, int64_t s, const From* __restrict__ from,
                   To* __restrict__ to) {
  const int64_t groups = (sizes.channels + kChannels - 1) / kChannels;
  const int64_t distance = kBackwards ? -(int64_t{1} << s) : int64_t{1} << s;
  const int64_t items = sizes.batch * groups * sizes.height * sizes.width;
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Place at = place_at(sizes, index, groups);
    T sums[kChannels] = {};
    for (int k = 0; k < kNeighbours; ++k) {
      if (!reaches(at.y, at.x, k, distance, sizes.height, sizes.width)) continue;
      const int64_t row = at.y + distance * row_shift(k), column = at.x + distance * column_shift(k);
      const T weight =
          kBackwards ? weights[sizes.weight(at.b, s, k, row) + column] : weights[sizes.weight(at.b, s, k, at.y) + at.x];
#pragma unroll
      for (int i = 0; i < kChannels; ++i) {
        const int64_t c = at.group * kChannels + i;
        if (c < sizes.channels) sums[i] += weight * static_cast<T>(from[sizes.value(at.b, c, row) + column]);
      }
    }
#pragma unroll
    for (int i = 0; i < kChannels; ++i) {
      const int64_t c = at.group * kChannels + i;
      if (c < sizes.channels) to[sizes.value(at.b, c, at.y) + at.x] = static_cast<To>(sums[i]);
    }
  }
}

// grad_weight(x) = sum over channels of grad_to(x) from(x + way).
template <class T, class Grad, class From>
__global__ void __launch_bounds__(kThreads)
    propagation_weight_gradient(PropagationSizes sizes, int64_t s, const Grad* __restrict__ grad_to,
                                const From* __restrict__ from, T* __restrict__ grad_weights) {
  const int64_t distance = int64_t{1} << s;
  const int64_t items = sizes.batch * kNeighbours * sizes.height * sizes.width;
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Place at = place_at(sizes, index, kNeighbours);
    const int k = static_cast<int>(at.group);
    T sum = 0;
    if (reaches(at.y, at.x, k, distance, sizes.height, sizes.width)) {
      const int64_t row = at.y + distance * row_shift(k), column = at.x + distance * column_shift(k);
      for (int64_t c = 0; c < sizes.channels; ++c) {
        sum += static_cast<T>(grad_to[sizes.value(at.b, c, at.y) + at.x]) *
               static_cast<T>(from[sizes.value(at.b, c, row) + column]);
      }
    }
    grad_weights[sizes.weight(at.b, s, k, at.y) + at.x] = sum;
  }
}

template <bool kBackwards, class T, class From, class To>
void launch_step(const DeviceCall& call, const PropagationSizes& sizes, const Tensor& weights, int64_t s,
                 const From* from, To* to) {
  const int64_t groups = (sizes.channels + kChannels - 1) / kChannels;
  const int64_t items = sizes.batch * groups * sizes.height * sizes.width;
  call.launch(propagate_step<kBackwards, T, From, To>, blocks_for(items), kThreads, 0, sizes, data<T>(weights), s, from,
              to);
}

// Maps between two steps are kept in the dtype of sums; the first is read and the last written in the values' own.
template <class T, class V>
void run_forward(const DeviceCall& call, const PropagationSizes& sizes, const Tensor& values, const Tensor& weights,
                 T* between, V* result) {
  const auto end_of = [&](int64_t s) { return between + s * sizes.count(); };
  for (int64_t s = 0; s < sizes.steps; ++s) {
    const bool first = s == 0, last = result != nullptr && s == sizes.steps - 1;
    if (result == nullptr && s == sizes.steps - 1) break;  // what the last step begins with is asked for
    if (first && last) {
      launch_step<false, T>(call, sizes, weights, s, data<V>(values), result);
    } else if (first) {
      launch_step<false, T>(call, sizes, weights, s, data<V>(values), end_of(s));
    } else if (last) {
      launch_step<false, T>(call, sizes, weights, s, const_cast<const T*>(end_of(s - 1)), result);
    } else {
      launch_step<false, T>(call, sizes, weights, s, const_cast<const T*>(end_of(s - 1)), end_of(s));
    }
  }
}

// Gradients of step s, whose result has the gradient grad_to.
template <class T, class V, class Grad>
void run_step_backward(const DeviceCall& call, const PropagationSizes& sizes, const Tensor& values,
                       const Tensor& weights, const T* between, int64_t s, const Grad* grad_to, V* grad_values,
                       T* grad_from, T* grad_weights) {
  const int64_t items = sizes.batch * kNeighbours * sizes.height * sizes.width;
  if (s == 0) {
    call.launch(propagation_weight_gradient<T, Grad, V>, blocks_for(items), kThreads, 0, sizes, s, grad_to,
                data<V>(values), grad_weights);
    launch_step<true, T>(call, sizes, weights, s, grad_to, grad_values);
  } else {
    call.launch(propagation_weight_gradient<T, Grad, T>, blocks_for(items), kThreads, 0, sizes, s, grad_to,
                between + (s - 1) * sizes.count(), grad_weights);
    launch_step<true, T>(call, sizes, weights, s, grad_to, grad_from);
  }
}

Tensor propagate(Tensor values, Tensor weights) {
  const char* op = "propagate";
  check_propagate(op, values, weights);
  const DeviceCall call(op, values);
  const Tensor result = allocate(op, values, shape_of(values), values.scalar_type());
  if (result.numel() == 0) return result;
  const Tensor from = torch::stable::contiguous(values), shares = torch::stable::contiguous(weights);
  const PropagationSizes sizes = propagation_sizes(values, weights);
  const Tensor between = allocate(op, values, {sizes.steps - 1, sizes.count()}, weights.scalar_type());
  with_feature_type(values.scalar_type(), [&](auto value) {
    using V = decltype(value);
    using T = SumType<V>;
    run_forward<T, V>(call, sizes, from, shares, mutable_data<T>(between), mutable_data<V>(result));
  });
  return result;
}

std::tuple<Tensor, Tensor> propagate_backward(Tensor grad, Tensor values, Tensor weights) {
  const char* op = "propagate_backward";
  check_propagate(op, values, weights);
  check_gradient(op, grad, shape_of(values), values.scalar_type(), "values", values);
  const DeviceCall call(op, values);
  const Tensor grad_values = allocate(op, values, shape_of(values), values.scalar_type());
  const Tensor grad_weights = allocate(op, weights, shape_of(weights), weights.scalar_type());
  if (grad.numel() == 0) {
    call.clear(grad_weights);
    return {grad_values, grad_weights};
  }
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor from = torch::stable::contiguous(values), shares = torch::stable::contiguous(weights);
  const PropagationSizes sizes = propagation_sizes(values, weights);
  // What each step but the first began with, and the gradients of two of them.
  const Tensor between = allocate(op, values, {sizes.steps + 1, sizes.count()}, weights.scalar_type());
  with_feature_type(values.scalar_type(), [&](auto value) {
    using V = decltype(value);
    using T = SumType<V>;
    T* begins = mutable_data<T>(between);
    T* spare[2] = {begins + (sizes.steps - 1) * sizes.count(), begins + sizes.steps * sizes.count()};
    run_forward<T, V>(call, sizes, from, shares, begins, nullptr);
    V* target = mutable_data<V>(grad_values);
    T* weight_target = mutable_data<T>(grad_weights);
    for (int64_t s = sizes.steps - 1; s >= 0; --s) {
      if (s == sizes.steps - 1) {
        run_step_backward(call, sizes, from, shares, begins, s, data<V>(g), target, spare[s % 2], weight_target);
      } else {
        run_step_backward(call, sizes, from, shares, begins, s, const_cast<const T*>(spare[(s + 1) % 2]), target,
                          spare[s % 2], weight_target);
      }
    }
  });
  return {grad_values, grad_weights};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("propagate", TORCH_BOX(&flowfuse::cuda::propagate));
  m.impl("propagate_backward", TORCH_BOX(&flowfuse::cuda::propagate_backward));
}
