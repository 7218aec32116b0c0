// Group normalization, a residual and a leaky ReLU: a task is a group of an item, whose values stay in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <optional>

#include "cpu/dispatch.h"
#include "operators/group_norm_activate.h"
#include "optional_tensors.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kLanesOfSums = 64;         // sums kept side by side
constexpr int64_t kRun = 64 * kLanesOfSums;  // values that they take before float64 does: their rounding stays small

// The sum over values of term(value), or of their squared distances from `mean`.
template <bool kSquared, class T, class F>
FLOWFUSE_INLINE double sum_of(const F* values, int64_t size, T mean) {
  double total = 0;
  for (int64_t first = 0; first < size; first += kRun) {
    T sums[kLanesOfSums];
    for (int64_t i = 0; i < kLanesOfSums; ++i) sums[i] = T(0);
    const int64_t last = first + kRun < size ? first + kRun : size;
    int64_t at = first;
    for (; at + kLanesOfSums <= last; at += kLanesOfSums) {
#pragma GCC ivdep
      for (int64_t i = 0; i < kLanesOfSums; ++i) {
        const T value = static_cast<T>(values[at + i]) - mean;
        sums[i] += kSquared ? value * value : value;
      }
    }
    for (; at < last; ++at) {
      const T value = static_cast<T>(values[at]) - mean;
      sums[0] += kSquared ? value * value : value;
    }
    for (int64_t i = 0; i < kLanesOfSums; ++i) total += static_cast<double>(sums[i]);
  }
  return total;
}

template <class T, class F>
FLOWFUSE_INLINE void normalize_group(const GroupNorm<T, F>& params, int64_t index) {
  const int64_t group = index % params.groups, size = params.size();
  const F* values = params.values + index * size;
  const double mean = sum_of<false>(values, size, T(0)) / static_cast<double>(size);
  const double variance = sum_of<true>(values, size, static_cast<T>(mean)) / static_cast<double>(size);
  const T scale = static_cast<T>(1 / __builtin_sqrt(variance + kNormEpsilon));
  for (int64_t c = 0; c < params.channels; ++c) {
    const int64_t channel = group * params.channels + c, first = c * params.plane;
    const NormScale<T> norm = norm_scale(static_cast<T>(mean), scale, params.weight[channel], params.bias[channel]);
    const F* from = values + first;
    F* to = params.result + index * size + first;
    if (params.residual != nullptr) {
      const F* residual = params.residual + index * size + first;
#pragma GCC ivdep
      for (int64_t x = 0; x < params.plane; ++x) {
        to[x] = static_cast<F>(norm.apply(from[x], static_cast<T>(residual[x])));
      }
    } else {
#pragma GCC ivdep
      for (int64_t x = 0; x < params.plane; ++x) to[x] = static_cast<F>(norm.apply(from[x], T(0)));
    }
  }
}

Tensor group_norm_activate(Tensor values, std::optional<Tensor> residual, Tensor weight, Tensor bias, int64_t groups) {
  const char* op = "group_norm_activate";
  check_group_norm_activate(op, values, residual, weight, bias, groups);
  const ScalarType dtype = values.scalar_type();
  const Tensor result = allocate(op, values, shape_of(values), dtype);
  if (result.numel() == 0) return result;
  const Tensor source = converted(values, dtype);
  const Tensor factors = converted(weight, weight.scalar_type()), offsets = converted(bias, bias.scalar_type());
  convert(residual, dtype);
  with_feature_type(dtype, [&](auto feature) {
    using F = decltype(feature);
    using T = SumType<F>;
    const GroupNorm<T, F> params{data<F>(source),  data_or_null<F>(residual), data<T>(factors),
                                 data<T>(offsets), mutable_data<F>(result),   values.size(0),
                                 groups,           values.size(1) / groups,   values.size(2) * values.size(3)};
    parallel_for(0, params.count * groups, 1, [&](int64_t first, int64_t last) {
      FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index) normalize_group(params, index))
    });
  });
  return result;
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("group_norm_activate", TORCH_BOX(&flowfuse::cpu::group_norm_activate));
}
