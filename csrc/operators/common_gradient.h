// common_gradient for every device: its check, and its formulas at one pixel.
#pragma once

#include <cmath>
#include <cstdint>
#include <optional>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

inline void check_common_gradient(const char* op, const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                                  const std::optional<Tensor>& flow) {
  check_shape(op, "frame0", frame0, "[B, 1 or 3, H, W]",
              frame0.dim() == 4 && (frame0.size(1) == 1 || frame0.size(1) == 3));
  check_shape(op, "frame1", frame1, shape_of(frame0));
  const int64_t batch = frame0.size(0), height = frame0.size(2), width = frame0.size(3);
  check_shape(op, "event_sum", event_sum, {batch, 1, height, width});
  const auto check_frame = [&](const char* name, const Tensor& frame) {
    if (frame.scalar_type() == ScalarType::Byte) {
      refuse(op, name, " must be floating point in [0, 1], got uint8: divide it by 255 first");
    }
    check_dtype(op, name, frame, kFeatureDtypes);
  };
  check_frame("frame0", frame0);
  check_frame("frame1", frame1);
  if (frame0.scalar_type() != frame1.scalar_type()) {
    refuse(op, "frame0 and frame1 must have the same dtype, got ", dtype_name(frame0.scalar_type()), " and ",
           dtype_name(frame1.scalar_type()));
  }
  const ScalarType exact = sum_dtype(frame0.scalar_type());
  check_dtype(op, "event_sum", event_sum, {exact});
  check_device(op, "frame1", frame1, "frame0", frame0);
  check_device(op, "event_sum", event_sum, "frame0", frame0);
  if (flow.has_value()) {
    check_shape(op, "flow", *flow, {batch, 2, height, width});
    check_dtype(op, "flow", *flow, {exact});
    check_device(op, "flow", *flow, "frame0", frame0);
  }
}

constexpr int kReach = 3;  // of the window of the similarity S
constexpr int kWindowSide = 2 * kReach + 1;
constexpr double kLogOffset = 1e-3;
constexpr double kFrameFloor = 1e-4;  // log-intensity squared
constexpr double kEventFloor = 1e-2;  // polarity counts squared

// Rec. 601; a gray frame is its own luma.
template <class T>
FLOWFUSE_INLINE T luma_weight(int64_t channels, int64_t channel) {
  if (channels == 1) return T(1);
  return static_cast<T>(channel == 0 ? 0.299 : channel == 1 ? 0.587 : 0.114);
}

// Luma of the pixel whose first channel is at `frame`, the others each `stride` further.
template <class T, class F>
FLOWFUSE_INLINE T luma(const F* frame, int64_t channels, int64_t stride) {
  if (channels == 1) return static_cast<T>(frame[0]);
  return luma_weight<T>(3, 0) * static_cast<T>(frame[0]) + luma_weight<T>(3, 1) * static_cast<T>(frame[stride]) +
         luma_weight<T>(3, 2) * static_cast<T>(frame[2 * stride]);
}

// What log_intensity is made of; a kernel may bring its own.
struct LibraryFunctions {
  template <class T>
  static FLOWFUSE_INLINE T log(T x) {
    return std::log(x);
  }
  // base^2.4
  template <class T>
  static FLOWFUSE_INLINE T decoding_power(T base) {
    return std::pow(base, static_cast<T>(2.4));
  }
};

// Log intensity of a luma; `slope`, when not null, receives d log / d luma.
template <class T, class Functions = LibraryFunctions>
FLOWFUSE_INLINE T log_intensity(T value, bool linear, T* slope) {
  const T offset = static_cast<T>(kLogOffset);
  const bool below = value < 0;  // NaN is not below and stays NaN
  const T encoded = below ? T(0) : value;
  T intensity = encoded, derivative = 1, divisor = 1;  // d intensity / d value: derivative / divisor
  if (!linear) {
    if (encoded <= static_cast<T>(0.04045)) {
      intensity = encoded * static_cast<T>(1 / 12.92);
      derivative = static_cast<T>(1 / 12.92);
    } else {
      const T base = (encoded + static_cast<T>(0.055)) * static_cast<T>(1 / 1.055);
      intensity = Functions::decoding_power(base);
      derivative = static_cast<T>(2.4 / 1.055) * intensity;
      divisor = base;
    }
  }
  if (slope != nullptr) *slope = below ? T(0) : derivative / (divisor * (intensity + offset));
  return Functions::log(intensity + offset);
}

struct Span {
  int64_t begin, end;
};

// Positions within kReach of `at` inside [0, size).
FLOWFUSE_INLINE Span around(int64_t at, int64_t size) {
  return {at - kReach < 0 ? 0 : at - kReach, at + kReach + 1 > size ? size : at + kReach + 1};
}

template <class T>
FLOWFUSE_INLINE T similarity_scale(T var_a, T var_b) {
  return 1 / std::sqrt((var_a + static_cast<T>(kFrameFloor)) * (var_b + static_cast<T>(kEventFloor)));
}

// With g = dS of a window, its pixel j receives
//   dS/da_j = p (b_j - mean_b) - q (a_j - mean_a),  dS/db_j = p (a_j - mean_a) - r (b_j - mean_b).
template <class T>
struct SimilarityGradient {
  T p, q, r;
};

// share: one over the number of the window's pixels.
template <class T>
FLOWFUSE_INLINE SimilarityGradient<T> similarity_gradient(T grad, T share, T var_a, T var_b, T covariance) {
  const T scale = similarity_scale(var_a, var_b), p = grad * share * scale;
  const T similarity = covariance * scale;
  return {p, p * similarity * (scale * (var_b + static_cast<T>(kEventFloor))),
          p * similarity * (scale * (var_a + static_cast<T>(kFrameFloor)))};
}

}  // namespace flowfuse
