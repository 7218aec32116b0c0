// Arguments of operators that need not be given.
#pragma once

#include <optional>

#include "tensors.h"

namespace flowfuse {

inline void convert(std::optional<Tensor>& tensor, ScalarType dtype) {
  if (tensor.has_value()) *tensor = converted(*tensor, dtype);
}

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor.has_value() ? data<T>(*tensor) : nullptr;
}

}  // namespace flowfuse
