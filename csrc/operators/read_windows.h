// read_windows and the look-ups that are read at once, for every device: checks, and the part of the host.
#pragma once

#include <cstdint>
#include <optional>
#include <tuple>

#include "checks.h"
#include "optional_tensors.h"
#include "portable.h"
#include "tensors.h"

namespace flowfuse {

// How windows are read.
struct ReadingArguments {
  std::optional<Tensor> fade, gate;
  Tensor offsets, log_sharpness;
  std::optional<Tensor> weight, bias;
};

// Sizes of windows [N, V, h, w], and where they come from: an argument with a device, called `name`.
struct WindowSizes {
  int64_t count, channels, height, width;
  ScalarType dtype;
  const char* name;
  const Tensor& source;
};

inline void check_reading(const char* op, const WindowSizes& windows, const ReadingArguments& given) {
  const auto check_exact = [&](const char* name, const Tensor& tensor) {
    check_dtype(op, name, tensor, {windows.dtype});
    check_device(op, name, tensor, windows.name, windows.source);
  };
  check_shape(op, "offsets", given.offsets, {2, windows.channels});
  check_exact("offsets", given.offsets);
  check_shape(op, "log_sharpness", given.log_sharpness, "[]", given.log_sharpness.dim() == 0);
  check_exact("log_sharpness", given.log_sharpness);
  if (given.fade.has_value()) {
    const Tensor& fade = *given.fade;
    check_shape(op, "fade", fade, "[M, 1, h, w] with the h, w of windows and N a multiple of M",
                fade.dim() == 4 && fade.size(1) == 1 && fade.size(2) == windows.height &&
                    fade.size(3) == windows.width &&
                    (fade.size(0) == 0 ? windows.count == 0 : windows.count % fade.size(0) == 0));
    check_exact("fade", fade);
  }
  if (given.gate.has_value()) {
    check_shape(op, "gate", *given.gate, {windows.count, 1, windows.height, windows.width});
    check_exact("gate", *given.gate);
  }
  if (given.weight.has_value() != given.bias.has_value()) refuse(op, "weight and bias must be given together");
  if (given.weight.has_value()) {
    const Tensor &weight = *given.weight, &bias = *given.bias;
    check_shape(
        op, "weight", weight, "[C, V + 3, 1, 1]",
        weight.dim() == 4 && weight.size(1) == windows.channels + 3 && weight.size(2) == 1 && weight.size(3) == 1);
    check_dtype(op, "weight", weight, kFeatureDtypes);
    if (sum_dtype(weight.scalar_type()) != windows.dtype) {
      refuse(op, windows.name, " and weight must both be float64 or neither");
    }
    check_device(op, "weight", weight, windows.name, windows.source);
    check_shape(op, "bias", bias, {weight.size(0)});
    check_dtype(op, "bias", bias, {weight.scalar_type()});
    check_device(op, "bias", bias, windows.name, windows.source);
  }
}

inline WindowSizes check_read_windows(const char* op, const Tensor& windows, const ReadingArguments& given) {
  check_shape(op, "windows", windows, "[N, V, h, w] with V >= 1", windows.dim() == 4 && windows.size(1) >= 1);
  check_dtype(op, "windows", windows, kCoordinateDtypes);
  const WindowSizes sizes{windows.size(0),       windows.size(1), windows.size(2), windows.size(3),
                          windows.scalar_type(), "windows",       windows};
  check_reading(op, sizes, given);
  return sizes;
}

constexpr double kTokenSlope = 0.1;  // of the leaky ReLU below 0

// Shapes: tokens [N, C, h w], matches [N, 3, h w].
template <class T, class O>
struct WindowReading {
  using Value = T;

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

// Makes tokens and matches: calls run(WindowReading<T, O>), where there is a window, to fill them. O is the type of the
// weight, which is not half precision where not kHalf.
template <bool kHalf, class Run>
std::tuple<Tensor, Tensor> make_reading(const char* op, const WindowSizes& windows, ReadingArguments given,
                                        const Run& run) {
  const ScalarType exact = windows.dtype, dtype = given.weight.has_value() ? given.weight->scalar_type() : exact;
  const int64_t count = windows.count, height = windows.height, width = windows.width;
  const int64_t token_channels = given.weight.has_value() ? given.weight->size(0) : 0;
  const Tensor tokens = allocate(op, windows.source, {count, token_channels, height, width}, dtype);
  const Tensor matches = allocate(op, windows.source, {count, 3, height, width}, exact);
  if (matches.numel() == 0) return {tokens, matches};
  const Tensor offsets = converted(given.offsets, exact);
  for (std::optional<Tensor>* tensor : {&given.fade, &given.gate, &given.weight, &given.bias}) convert(*tensor, exact);
  const auto fill = [&](auto token) {
    using O = decltype(token);
    using T = SumType<O>;
    run(WindowReading<T, O>{data_or_null<T>(given.fade), data_or_null<T>(given.gate), data<T>(offsets),
                            data<T>(given.log_sharpness), data_or_null<T>(given.weight), data_or_null<T>(given.bias),
                            mutable_data<O>(tokens), mutable_data<T>(matches), count, windows.channels, token_channels,
                            height * width, given.fade.has_value() ? given.fade->size(0) : 1});
  };
  if constexpr (kHalf) {
    with_feature_type(dtype, fill);
  } else {
    dtype == ScalarType::Double ? fill(double{}) : fill(float{});
  }
  return {tokens, matches};
}

}  // namespace flowfuse
