// read_windows for every device: its check.
#pragma once

#include <cstdint>
#include <optional>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

inline void check_read_windows(const char* op, const Tensor& windows, const std::optional<Tensor>& fade,
                               const std::optional<Tensor>& gate, const Tensor& offsets, const Tensor& log_sharpness,
                               const std::optional<Tensor>& weight, const std::optional<Tensor>& bias) {
  check_shape(op, "windows", windows, "[N, V, h, w] with V >= 1", windows.dim() == 4 && windows.size(1) >= 1);
  const int64_t count = windows.size(0), channels = windows.size(1), height = windows.size(2), width = windows.size(3);
  check_dtype(op, "windows", windows, kCoordinateDtypes);
  const ScalarType exact = windows.scalar_type();
  const auto check_exact = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, {exact});
    check_device(op, name, tensor, "windows", windows);
  };
  check_shape(op, "offsets", offsets, {2, channels});
  check_exact("offsets", offsets);
  check_shape(op, "log_sharpness", log_sharpness, "[]", log_sharpness.dim() == 0);
  check_exact("log_sharpness", log_sharpness);
  if (fade.has_value()) {
    check_shape(op, "fade", *fade, "[M, 1, h, w] with the h, w of windows and N a multiple of M",
                fade->dim() == 4 && fade->size(1) == 1 && fade->size(2) == height && fade->size(3) == width &&
                    (fade->size(0) == 0 ? count == 0 : count % fade->size(0) == 0));
    check_exact("fade", *fade);
  }
  if (gate.has_value()) {
    check_shape(op, "gate", *gate, {count, 1, height, width});
    check_exact("gate", *gate);
  }
  if (weight.has_value() != bias.has_value()) refuse(op, "weight and bias must be given together");
  if (weight.has_value()) {
    check_shape(op, "weight", *weight, "[C, V + 3, 1, 1]",
                weight->dim() == 4 && weight->size(1) == channels + 3 && weight->size(2) == 1 && weight->size(3) == 1);
    check_dtype(op, "weight", *weight, kFeatureDtypes);
    if (sum_dtype(weight->scalar_type()) != exact) refuse(op, "windows and weight must both be float64 or neither");
    check_device(op, "weight", *weight, "windows", windows);
    check_shape(op, "bias", *bias, {weight->size(0)});
    check_dtype(op, "bias", *bias, {weight->scalar_type()});
    check_device(op, "bias", *bias, "windows", windows);
  }
}

constexpr double kTokenSlope = 0.1;  // of the leaky ReLU below 0

// Shapes: windows [N, V, h w], tokens [N, C, h w], matches [N, 3, h w].
template <class T, class O>
struct WindowReading {
  const T* windows;
  const T* fade;  // [fades, h w], or null
  const T* gate;  // [N, h w], or null
  const T* offsets;
  const T* log_sharpness;
  const T* weight;  // [C, V + 3]
  const T* bias;
  O* tokens;
  T* matches;
  int64_t count, channels, token_channels, plane;
  int64_t fades;  // used in turn
};

}  // namespace flowfuse
