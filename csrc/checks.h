// Argument checks of the operators, one function each, for every device: the wording of flowfuse/ops/checks.py.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace flowfuse {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline std::string size_list(const std::vector<int64_t>& sizes) {
  std::string text = "[";
  for (size_t i = 0; i < sizes.size(); ++i) text += (i ? ", " : "") + std::to_string(sizes[i]);
  return text + "]";
}

inline std::vector<int64_t> shape_of(const Tensor& tensor) {
  const auto sizes = tensor.sizes();
  return std::vector<int64_t>(sizes.begin(), sizes.end());
}

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Byte: return "uint8";
    case ScalarType::Char: return "int8";
    case ScalarType::Short: return "int16";
    case ScalarType::UInt16: return "uint16";
    case ScalarType::Int: return "int32";
    case ScalarType::Long: return "int64";
    case ScalarType::Bool: return "bool";
    case ScalarType::Half: return "float16";
    case ScalarType::BFloat16: return "bfloat16";
    case ScalarType::Float: return "float32";
    case ScalarType::Double: return "float64";
    default: return "dtype number " + std::to_string(static_cast<int>(dtype));
  }
}

inline const std::vector<ScalarType>& feature_dtypes() {
  static const std::vector<ScalarType> list{ScalarType::Float, ScalarType::Half, ScalarType::BFloat16,
                                            ScalarType::Double};
  return list;
}

constexpr int64_t kMaxLevels = 16;
constexpr int64_t kMaxRadius = 16;
constexpr int64_t kMaxFactor = 64;  // of convex_upsample
constexpr int64_t kMaxPoints = 16;  // control points of a trajectory in warp_events

inline const std::vector<ScalarType>& coordinate_dtypes() {
  static const std::vector<ScalarType> list{ScalarType::Float, ScalarType::Double};
  return list;
}

inline void check_dtype(const char* op, const std::string& name, const Tensor& tensor,
                        const std::vector<ScalarType>& allowed) {
  std::string names;
  for (const ScalarType dtype : allowed) {
    if (tensor.scalar_type() == dtype) return;
    names += (names.empty() ? "" : ", ") + dtype_name(dtype);
  }
  STD_TORCH_CHECK(false, op, ": ", name, " must be of dtype ", names, ", got ",
                  dtype_name(tensor.scalar_type()));
}

inline void check_shape(const char* op, const std::string& name, const Tensor& tensor,
                        const std::string& form, bool matches) {
  STD_TORCH_CHECK(matches, op, ": ", name, " must have shape ", form, ", got ", size_list(shape_of(tensor)));
}

inline void check_exact_shape(const char* op, const std::string& name, const Tensor& tensor,
                              const std::vector<int64_t>& shape) {
  check_shape(op, name, tensor, size_list(shape), shape_of(tensor) == shape);
}

inline void check_device(const char* op, const std::string& name, const Tensor& tensor,
                         const std::string& first_name, const Tensor& first) {
  STD_TORCH_CHECK(tensor.device() == first.device(), op, ": ", name, " must be on the device of ",
                  first_name);
}

// Dtypes and shapes of a batch of events; `times` are per batch item. No value is read.
inline void check_events(const char* op, const Tensor& x, const Tensor& y, const Tensor& t, const Tensor& p,
                         const Tensor& offsets, const std::vector<std::pair<std::string, Tensor>>& times) {
  check_shape(op, "t", t, "[N]", t.dim() == 1);
  check_exact_shape(op, "x", x, {t.size(0)});
  check_exact_shape(op, "y", y, {t.size(0)});
  check_exact_shape(op, "p", p, {t.size(0)});
  check_shape(op, "offsets", offsets, "[B + 1], B at least 1", offsets.dim() == 1 && offsets.size(0) >= 2);
  check_dtype(op, "x", x,
              {ScalarType::Byte, ScalarType::Short, ScalarType::UInt16, ScalarType::Int, ScalarType::Long,
               ScalarType::Float, ScalarType::Double});
  check_dtype(op, "y", y, {x.scalar_type()});
  check_dtype(op, "p", p,
              {ScalarType::Byte, ScalarType::Bool, ScalarType::Char, ScalarType::Short, ScalarType::Int,
               ScalarType::Long});
  check_dtype(op, "t", t, {ScalarType::Long});
  check_dtype(op, "offsets", offsets, {ScalarType::Long});
  for (const auto& [name, tensor] : times) check_dtype(op, name, tensor, {ScalarType::Long});
  for (const auto& [name, tensor] : times) check_exact_shape(op, name, tensor, {offsets.size(0) - 1});
  for (const Tensor& other : {y, t, p, offsets}) check_device(op, "every argument", other, "x", x);
  for (const auto& [name, tensor] : times) check_device(op, "every argument", tensor, "x", x);
}

inline void check_size(const char* op, const char* name, int64_t value, int64_t limit) {
  STD_TORCH_CHECK(value >= 1 && value <= limit, op, ": ", name, " must be in [1, ", limit, "], got ", value);
}

// The values behind check_events, for devices whose memory the host can read.
inline void check_event_values(const char* op, int64_t count, const int64_t* offsets, const int64_t* t0,
                               const int64_t* t1, int64_t items) {
  bool ordered = offsets[0] >= 0 && offsets[items] <= count;
  for (int64_t b = 0; b < items; ++b) ordered = ordered && offsets[b] <= offsets[b + 1];
  STD_TORCH_CHECK(ordered, op, ": offsets must not decrease and must lie within [0, ", count, "]");
  for (int64_t b = 0; b < items; ++b) {
    STD_TORCH_CHECK(t0[b] < t1[b], op, ": t1 must be later than t0, got t0 = ", t0[b], ", t1 = ", t1[b],
                    " in item ", b);
    const uint64_t duration = static_cast<uint64_t>(t1[b]) - static_cast<uint64_t>(t0[b]);
    STD_TORCH_CHECK(duration <= (uint64_t{1} << 40), op,
                    ": t1 - t0 must be at most 2^40 microseconds, got t0 = ", t0[b], ", t1 = ", t1[b],
                    " in item ", b);
  }
}

inline void check_voxelize(const Tensor& x, const Tensor& y, const Tensor& t, const Tensor& p,
                           const Tensor& offsets, const Tensor& t0, const Tensor& t1, int64_t bins,
                           int64_t height, int64_t width) {
  const char* op = "voxelize";
  check_events(op, x, y, t, p, offsets, {{"t0", t0}, {"t1", t1}});
  check_size(op, "bins", bins, int64_t{1} << 16);
  check_size(op, "height", height, int64_t{1} << 20);
  check_size(op, "width", width, int64_t{1} << 20);
}

inline void check_warp_events(const Tensor& x, const Tensor& y, const Tensor& t, const Tensor& p,
                              const Tensor& offsets, const Tensor& trajectory, const Tensor& t0, const Tensor& t1,
                              const Tensor& t_ref, const std::string& mode, int64_t height, int64_t width) {
  const char* op = "warp_events";
  check_events(op, x, y, t, p, offsets, {{"t0", t0}, {"t1", t1}, {"t_ref", t_ref}});
  STD_TORCH_CHECK(mode == "signed" || mode == "unsigned" || mode == "split", op,
                  ": mode must be 'signed', 'unsigned' or 'split', got '", mode, "'");
  check_size(op, "height", height, int64_t{1} << 20);
  check_size(op, "width", width, int64_t{1} << 20);
  const int64_t items = offsets.size(0) - 1;
  const std::vector<int64_t> shape = shape_of(trajectory), flow{items, 2, height, width};
  const bool points = shape.size() == 5 && shape[1] >= 1 &&
                      std::vector<int64_t>{shape[0], shape[2], shape[3], shape[4]} == flow;
  const std::string end = "2, " + std::to_string(height) + ", " + std::to_string(width) + "]";
  const std::string start = "[" + std::to_string(items) + ", ";
  check_shape(op, "trajectory", trajectory, start + end + " or " + start + "n, " + end, shape == flow || points);
  STD_TORCH_CHECK(!points || shape[1] <= kMaxPoints, op, ": trajectory must have at most ", kMaxPoints,
                  " control points, got ", shape[1]);
  check_dtype(op, "trajectory", trajectory, coordinate_dtypes());
  check_device(op, "trajectory", trajectory, "x", x);
}

inline void check_level_count(const char* op, size_t levels) {
  STD_TORCH_CHECK(levels >= 1 && levels <= size_t{kMaxLevels}, op, ": levels must be in [1, ", kMaxLevels,
                  "], got ", levels);
}

inline void check_correlation_volume(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels) {
  check_shape(op, "f0", f0, "[B, C, H, W]", f0.dim() == 4);
  check_dtype(op, "f0", f0, feature_dtypes());
  STD_TORCH_CHECK(f0.size(1) >= 1, op, ": f0 must have at least one channel, got ", size_list(shape_of(f0)));
  check_level_count(op, f1_levels.size());
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    const Tensor& f1 = f1_levels[level];
    const std::string name = "level " + std::to_string(level) + " of f1";
    const std::string form =
        "[" + std::to_string(f0.size(0)) + ", " + std::to_string(f0.size(1)) + ", H_l, W_l]";
    check_shape(op, name, f1, form, f1.dim() == 4 && f1.size(0) == f0.size(0) && f1.size(1) == f0.size(1));
    check_dtype(op, name, f1, feature_dtypes());
    STD_TORCH_CHECK((f0.scalar_type() == ScalarType::Double) == (f1.scalar_type() == ScalarType::Double), op,
                    ": f0 and ", name, " must both be float64 or neither");
    check_device(op, name, f1, "f0", f0);
  }
}

inline void check_lookup(const char* op, const Tensor& coords, int64_t radius) {
  check_shape(op, "coords", coords, "[B, 2, H, W]", coords.dim() == 4 && coords.size(1) == 2);
  check_dtype(op, "coords", coords, coordinate_dtypes());
  STD_TORCH_CHECK(radius >= 0 && radius <= kMaxRadius, op, ": radius must be in [0, ", kMaxRadius, "], got ",
                  radius);
}

inline void check_correlation_lookup(const Tensor& f0, const std::vector<Tensor>& f1_levels,
                                     const Tensor& coords, int64_t radius) {
  const char* op = "correlation_lookup";
  check_correlation_volume(op, f0, f1_levels);
  check_lookup(op, coords, radius);
  check_exact_shape(op, "coords", coords, {f0.size(0), 2, f0.size(2), f0.size(3)});
  check_device(op, "coords", coords, "f0", f0);
}

inline void check_volume_lookup(const std::vector<Tensor>& volumes, const Tensor& coords, int64_t radius) {
  const char* op = "volume_lookup";
  check_level_count(op, volumes.size());
  check_lookup(op, coords, radius);
  const std::string form = "[" + std::to_string(coords.size(0)) + ", " + std::to_string(coords.size(2)) +
                           ", " + std::to_string(coords.size(3)) + ", H_l, W_l]";
  for (size_t level = 0; level < volumes.size(); ++level) {
    const Tensor& volume = volumes[level];
    const std::string name = "level " + std::to_string(level) + " of volumes";
    check_shape(op, name, volume, form,
                volume.dim() == 5 && volume.size(0) == coords.size(0) && volume.size(1) == coords.size(2) &&
                    volume.size(2) == coords.size(3));
    check_dtype(op, name, volume, coordinate_dtypes());
    STD_TORCH_CHECK(volume.scalar_type() == volumes[0].scalar_type(), op, ": ", name,
                    " must be of the dtype of level 0, got ", dtype_name(volume.scalar_type()));
    check_device(op, name, volume, "coords", coords);
  }
}

inline void check_common_gradient(const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                                  const std::optional<Tensor>& flow) {
  const char* op = "common_gradient";
  check_shape(op, "frame0", frame0, "[B, 1 or 3, H, W]",
              frame0.dim() == 4 && (frame0.size(1) == 1 || frame0.size(1) == 3));
  check_exact_shape(op, "frame1", frame1, shape_of(frame0));
  const int64_t batch = frame0.size(0), height = frame0.size(2), width = frame0.size(3);
  check_exact_shape(op, "event_sum", event_sum, {batch, 1, height, width});
  const auto check_frame = [&](const char* name, const Tensor& frame) {
    STD_TORCH_CHECK(frame.scalar_type() != ScalarType::Byte, op, ": ", name,
                    " must be floating point in [0, 1], got uint8: divide it by 255 first");
    check_dtype(op, name, frame, feature_dtypes());
  };
  check_frame("frame0", frame0);
  check_frame("frame1", frame1);
  STD_TORCH_CHECK(frame0.scalar_type() == frame1.scalar_type(), op,
                  ": frame0 and frame1 must have the same dtype");
  const bool wide = frame0.scalar_type() == ScalarType::Double;
  const std::vector<ScalarType> exact{wide ? ScalarType::Double : ScalarType::Float};
  check_dtype(op, "event_sum", event_sum, exact);
  check_device(op, "frame1", frame1, "frame0", frame0);
  check_device(op, "event_sum", event_sum, "frame0", frame0);
  if (flow.has_value()) {
    check_exact_shape(op, "flow", *flow, {batch, 2, height, width});
    check_dtype(op, "flow", *flow, exact);
    check_device(op, "flow", *flow, "frame0", frame0);
  }
}

inline void check_convex_upsample(const Tensor& field, const Tensor& mask, int64_t factor) {
  const char* op = "convex_upsample";
  STD_TORCH_CHECK(factor >= 1 && factor <= kMaxFactor, op, ": factor must be in [1, ", kMaxFactor, "], got ",
                  factor);
  check_shape(op, "field", field, "[B, D, h, w]", field.dim() == 4);
  check_exact_shape(op, "mask", mask, {field.size(0), 9 * factor * factor, field.size(2), field.size(3)});
  check_dtype(op, "field", field, coordinate_dtypes());
  check_dtype(op, "mask", mask, feature_dtypes());
  check_device(op, "mask", mask, "field", field);
}

// Shape of what a look-up gives.
inline std::vector<int64_t> windows_shape(const Tensor& coords, size_t levels, int64_t radius) {
  const int64_t side = 2 * radius + 1;
  return {coords.size(0), static_cast<int64_t>(levels) * side * side, coords.size(2), coords.size(3)};
}

// The gradient handed to a backward operator; `first` is the forward's argument called `name`.
inline void check_gradient(const char* op, const Tensor& grad, const std::vector<int64_t>& shape,
                           ScalarType dtype, const std::string& name, const Tensor& first) {
  check_exact_shape(op, "grad", grad, shape);
  check_dtype(op, "grad", grad, {dtype});
  check_device(op, "grad", grad, name, first);
}

}  // namespace flowfuse
