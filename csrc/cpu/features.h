// Feature maps as the CPU kernels read and write them.
#pragma once

#include <torch/csrc/stable/ops.h>

#include "checks.h"

namespace flowfuse {

using torch::headeronly::MemoryFormat;

inline ScalarType sum_dtype(ScalarType dtype) {
  return dtype == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline Tensor converted(const Tensor& tensor, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::contiguous(torch::stable::to(tensor, dtype), format);
}

// A feature map in the dtype of sums; a batch expanded from one map stays one map (batch_stride 0).
struct Features {
  Tensor tensor;
  int64_t batch_stride, rows, columns;
};

inline Features packed(const Tensor& map, ScalarType dtype, MemoryFormat format) {
  const bool expanded = map.size(0) > 1 && map.stride(0) == 0;
  Tensor source = map;
  if (expanded) source = torch::stable::narrow(source, 0, 0, 1);
  const int64_t stride = map.size(1) * map.size(2) * map.size(3);
  return {converted(source, dtype, format), expanded ? 0 : stride, map.size(2), map.size(3)};
}

inline Tensor empty_channels_last(const Tensor& map, ScalarType dtype) {
  return torch::stable::empty(shape_of(map), dtype, std::nullopt, map.device(), std::nullopt,
                              MemoryFormat::ChannelsLast);
}

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

}  // namespace flowfuse
