// Group normalization, a residual and a leaky ReLU: the moments of a group by one block, then a thread a value.
#include <optional>

#include "cuda/launch.cuh"
#include "operators/group_norm_activate.h"
#include "optional_tensors.h"

namespace flowfuse::cuda {
namespace {

constexpr int kMomentThreads = 512;
constexpr int kWarps = kMomentThreads / kWarp;

// The sum over all threads of the block, in a fixed order; every thread receives it.
template <class T>
__device__ __forceinline__ T block_sum(T value, T* parts) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) value += __shfl_down_sync(kWholeWarp, value, offset);
  __syncthreads();  // the parts of the sum before have been read
  if (threadIdx.x % kWarp == 0) parts[threadIdx.x / kWarp] = value;
  __syncthreads();
  T total = 0;
  for (int warp = 0; warp < kWarps; ++warp) total += parts[warp];
  return total;
}

// moments [N groups, 2]: mean, and what the distance from it is multiplied with.
template <class T, class F>
__global__ void __launch_bounds__(kMomentThreads) group_moments(GroupNorm<T, F> params, T* __restrict__ moments) {
  T* parts = shared_memory<T>();
  const int64_t size = params.size();
  for (int64_t index = blockIdx.x; index < params.count * params.groups; index += gridDim.x) {
    const F* values = params.values + index * size;
    T sum = 0, squares = 0;
    for (int64_t i = threadIdx.x; i < size; i += kMomentThreads) sum += static_cast<T>(values[i]);
    const T mean = block_sum(sum, parts) / static_cast<T>(size);
    for (int64_t i = threadIdx.x; i < size; i += kMomentThreads) {
      const T distance = static_cast<T>(values[i]) - mean;
      squares += distance * distance;
    }
    const T variance = block_sum(squares, parts) / static_cast<T>(size);
    if (threadIdx.x == 0) {
      moments[2 * index] = mean;
      moments[2 * index + 1] = 1 / std::sqrt(variance + static_cast<T>(kNormEpsilon));
    }
  }
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads) apply_norm(GroupNorm<T, F> params, const T* __restrict__ moments) {
  const int64_t count = params.count * params.groups * params.size();
  for (int64_t at = first_item(); at < count; at += item_step()) {
    const int64_t plane = at / params.plane, channel = plane % (params.groups * params.channels);
    const int64_t group = plane / params.channels;
    const NormScale<T> norm =
        norm_scale(moments[2 * group], moments[2 * group + 1], params.weight[channel], params.bias[channel]);
    const T residual = params.residual == nullptr ? T(0) : static_cast<T>(params.residual[at]);
    params.result[at] = static_cast<F>(norm.apply(params.values[at], residual));
  }
}

Tensor group_norm_activate(Tensor values, std::optional<Tensor> residual, Tensor weight, Tensor bias, int64_t groups) {
  const char* op = "group_norm_activate";
  check_group_norm_activate(op, values, residual, weight, bias, groups);
  const DeviceCall call(op, values);
  const ScalarType dtype = values.scalar_type();
  const Tensor result = allocate(op, values, shape_of(values), dtype);
  if (result.numel() == 0) return result;
  const Tensor source = converted(values, dtype);
  const Tensor factors = converted(weight, weight.scalar_type()), offsets = converted(bias, bias.scalar_type());
  convert(residual, dtype);
  const Tensor moments = allocate(op, values, {values.size(0) * groups, 2}, sum_dtype(dtype));
  with_feature_type(dtype, [&](auto feature) {
    using F = decltype(feature);
    using T = SumType<F>;
    const GroupNorm<T, F> params{data<F>(source),  data_or_null<F>(residual), data<T>(factors),
                                 data<T>(offsets), mutable_data<F>(result),   values.size(0),
                                 groups,           values.size(1) / groups,   values.size(2) * values.size(3)};
    call.launch(group_moments<T, F>, blocks_for(params.count * groups, 1), kMomentThreads, kWarps * sizeof(T), params,
                mutable_data<T>(moments));
    call.launch(apply_norm<T, F>, blocks_for(values.numel()), kThreads, 0, params, data<T>(moments));
  });
  return result;
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("group_norm_activate", TORCH_BOX(&flowfuse::cuda::group_norm_activate));
}
