// group_norm_activate for every device: its check.
#pragma once

#include <cstdint>
#include <optional>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

constexpr double kNormEpsilon = 1e-5;
constexpr double kActivationSlope = 0.1;  // of the leaky ReLU below 0

inline void check_group_norm_activate(const char* op, const Tensor& values, const std::optional<Tensor>& residual,
                                      const Tensor& weight, const Tensor& bias, int64_t groups) {
  check_range(op, "groups", groups, 1, 65536);
  check_shape(op, "values", values, "[N, C, h, w] with C a multiple of groups",
              values.dim() == 4 && values.size(1) > 0 && values.size(1) % groups == 0);
  check_dtype(op, "values", values, kFeatureDtypes);
  if (residual.has_value()) {
    check_shape(op, "residual", *residual, shape_of(values));
    check_dtype(op, "residual", *residual, {values.scalar_type()});
    check_device(op, "residual", *residual, "values", values);
  }
  const ScalarType exact = sum_dtype(values.scalar_type());
  check_shape(op, "weight", weight, {values.size(1)});
  check_dtype(op, "weight", weight, {exact});
  check_device(op, "weight", weight, "values", values);
  check_shape(op, "bias", bias, {values.size(1)});
  check_dtype(op, "bias", bias, {exact});
  check_device(op, "bias", bias, "values", values);
}

// Shapes: values, residual and result [N, groups, channels, h w], weight and bias [groups, channels].
template <class T, class F>
struct GroupNorm {
  const F* values;
  const F* residual;  // or null
  const T* weight;
  const T* bias;
  F* result;
  int64_t count, groups, channels, plane;

  FLOWFUSE_INLINE int64_t size() const { return channels * plane; }  // of a group
};

// What the values of a channel are multiplied with, and what is added then.
template <class T>
struct NormScale {
  T factor, offset;

  template <class F>
  FLOWFUSE_INLINE T apply(F value, T residual) const {
    const T normal = static_cast<T>(value) * factor + offset + residual;
    return normal > 0 ? normal : static_cast<T>(kActivationSlope) * normal;
  }
};

template <class T>
FLOWFUSE_INLINE NormScale<T> norm_scale(T mean, T scale, T weight, T bias) {
  return {scale * weight, bias - mean * scale * weight};
}

}  // namespace flowfuse
