// What the checks of operators (operators/*.h) are made of. A fault is a std::invalid_argument, in Python a ValueError,
// that names the operator, the argument, what was expected and what came. Nothing is put into words before.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <ostream>
#include <sstream>
#include <stdexcept>
#include <string>
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

using Dtypes = std::initializer_list<ScalarType>;
constexpr Dtypes kFeatureDtypes{ScalarType::Float, ScalarType::Half, ScalarType::BFloat16, ScalarType::Double};
constexpr Dtypes kCoordinateDtypes{ScalarType::Float, ScalarType::Double};

// The dtype that sums are made in.
inline ScalarType sum_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

// Name of an argument, or of one tensor of a list: "level 2 of f1".
struct ArgumentName {
  static constexpr size_t kNone = ~size_t{0};
  const char* name;
  size_t level;

  ArgumentName(const char* name_, size_t level_ = kNone) : name(name_), level(level_) {}
};

inline std::ostream& operator<<(std::ostream& out, const ArgumentName& argument) {
  if (argument.level != ArgumentName::kNone) out << "level " << argument.level << " of ";
  return out << argument.name;
}

template <class... Parts>
[[noreturn]] void refuse(const char* op, const Parts&... parts) {
  std::ostringstream message;
  message << op << ": ";
  ((message << parts), ...);
  throw std::invalid_argument(message.str());
}

[[noreturn]] inline void refuse_shape(const char* op, const ArgumentName& name, const Tensor& tensor,
                                      const std::string& form) {
  refuse(op, name, " must have shape ", form, ", got ", size_list(shape_of(tensor)));
}

// `form` says in words what `matches` has tested.
inline void check_shape(const char* op, const ArgumentName& name, const Tensor& tensor, const char* form,
                        bool matches) {
  if (!matches) refuse_shape(op, name, tensor, form);
}

inline void check_shape(const char* op, const ArgumentName& name, const Tensor& tensor,
                        const std::vector<int64_t>& shape) {
  if (shape_of(tensor) != shape) refuse_shape(op, name, tensor, size_list(shape));
}

inline void check_dtype(const char* op, const ArgumentName& name, const Tensor& tensor, Dtypes allowed) {
  std::string names;
  for (const ScalarType dtype : allowed) {
    if (tensor.scalar_type() == dtype) return;
  }
  for (const ScalarType dtype : allowed) names += (names.empty() ? "" : ", ") + dtype_name(dtype);
  refuse(op, name, " must be of dtype ", names, ", got ", dtype_name(tensor.scalar_type()));
}

inline void check_range(const char* op, const char* name, int64_t value, int64_t least, int64_t most) {
  if (value < least || value > most) {
    refuse(op, name, " must be in [", least, ", ", most, "], got ", value);
  }
}

inline void check_device(const char* op, const ArgumentName& name, const Tensor& tensor, const char* first_name,
                         const Tensor& first) {
  if (tensor.device() != first.device()) refuse(op, name, " must be on the device of ", first_name);
}

// The gradient handed to a backward operator; `first` is the forward's argument called `name`.
inline void check_gradient(const char* op, const Tensor& grad, const std::vector<int64_t>& shape, ScalarType dtype,
                           const char* name, const Tensor& first) {
  check_shape(op, "grad", grad, shape);
  check_dtype(op, "grad", grad, {dtype});
  check_device(op, "grad", grad, name, first);
}

}  // namespace flowfuse
