// Tensors as the kernels of every device read and write them.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <exception>
#include <string>
#include <type_traits>
#include <vector>

#include "checks.h"

namespace flowfuse {

using torch::headeronly::MemoryFormat;

// Ends the message of a volume that does not fit.
constexpr const char* kOnDemandAdvice = "; Correlation(..., strategy=\"on_demand\") stores no volume";

inline int64_t rounded_up(int64_t count, int64_t multiple) { return (count + multiple - 1) / multiple * multiple; }

inline size_t sizeof_dtype(ScalarType dtype) { return aoti_torch_dtype_element_size(static_cast<int32_t>(dtype)); }

// Asks the system for huge pages behind a large tensor that is about to be written first: page by page, that can take
// longer than the work (docs/results/speed.md, "Memory").
inline void prefer_huge_pages(void* memory, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHugePage = uintptr_t{2} << 20;
  if (bytes < int64_t{4} << 20) return;
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + static_cast<uintptr_t>(bytes);
  const uintptr_t first = (begin + kHugePage - 1) / kHugePage * kHugePage, last = end / kHugePage * kHugePage;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
  (void)memory, (void)bytes;
#endif
}

// A tensor on the device of `like`. Where there is no memory for it the operator and the bytes are named, with
// `advice` on what needs less.
inline Tensor allocate(const char* op, const Tensor& like, const std::vector<int64_t>& sizes, ScalarType dtype,
                       MemoryFormat format = MemoryFormat::Contiguous, const char* advice = "") {
  try {
    const Tensor tensor = torch::stable::empty(sizes, dtype, std::nullopt, like.device(), std::nullopt, format);
    if (tensor.is_cpu()) {
      prefer_huge_pages(tensor.mutable_data_ptr(), tensor.numel() * static_cast<int64_t>(sizeof_dtype(dtype)));
    }
    return tensor;
  } catch (const std::exception&) {  // torch's own words do not cross the stable interface
    double bytes = static_cast<double>(sizeof_dtype(dtype));
    for (const int64_t size : sizes) bytes *= static_cast<double>(size);
    const std::string amount = bytes < 9e18 ? std::to_string(static_cast<int64_t>(bytes)) : "more than 2^63";
    STD_TORCH_CHECK(false, op, ": out of memory: ", amount, " bytes could not be allocated for a tensor of shape ",
                    size_list(sizes), advice);
  }
}

// Whether memory is dense with the channels last. Strides along axes of size 1 do not count.
inline bool is_channels_last(const Tensor& map) {
  int64_t expected = 1;
  for (const int axis : {1, 3, 2, 0}) {
    if (map.size(axis) != 1 && map.stride(axis) != expected) return false;
    expected *= map.size(axis);
  }
  return true;
}

// A tensor that is right already costs no call of torch: a look-up has five of them.
inline Tensor converted(const Tensor& tensor, ScalarType dtype, MemoryFormat format = MemoryFormat::Contiguous) {
  const Tensor typed = tensor.scalar_type() == dtype ? tensor : torch::stable::to(tensor, dtype);
  const bool laid_out = format == MemoryFormat::ChannelsLast ? is_channels_last(typed) : typed.is_contiguous();
  return laid_out ? typed : torch::stable::contiguous(typed, format);
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

inline Tensor empty_channels_last(const char* op, const Tensor& map, ScalarType dtype) {
  return allocate(op, map, shape_of(map), dtype, MemoryFormat::ChannelsLast);
}

// The type of sums over features F: double for double, else float.
template <class F>
using SumType = std::conditional_t<std::is_same_v<F, double>, double, float>;

template <class T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

template <class T>
T* mutable_data(const Tensor& tensor) {
  return static_cast<T*>(tensor.mutable_data_ptr());
}

// Calls visit(T{}) with the C++ type of a dtype among kFeatureDtypes.
template <class Visit>
void with_feature_type(ScalarType dtype, const Visit& visit) {
  switch (dtype) {
    case ScalarType::Half: return visit(torch::headeronly::Half{});
    case ScalarType::BFloat16: return visit(torch::headeronly::BFloat16{});
    case ScalarType::Double: return visit(double{});
    default: return visit(float{});
  }
}

}  // namespace flowfuse
