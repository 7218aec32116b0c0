#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <cmath>
#include <tuple>

#include "operators/correlation_volume.h"
#include "tensors.h"
#include "cpu/product.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

template <class T>
Tensor volume_level(const Features& f0, const Tensor& f1_level, int64_t batch, int64_t channels, ScalarType dtype) {
  const Features f1 = packed(f1_level, dtype, MemoryFormat::Contiguous);
  const int64_t pixels = f0.rows * f0.columns;
  Tensor volume = allocate("correlation_volume", f0.tensor, {batch, f0.rows, f0.columns, f1.rows, f1.columns}, dtype,
                           MemoryFormat::Contiguous, kOnDemandAdvice);
  const T scale = T(1) / std::sqrt(static_cast<T>(channels));
  multiply(Product<T>{data<T>(f0.tensor), f0.batch_stride, channels, 1, data<T>(f1.tensor), f1.batch_stride,
                      mutable_data<T>(volume), batch, pixels, channels, f1.rows * f1.columns, scale});
  return volume;
}

std::vector<Tensor> correlation_volume(Tensor f0, std::vector<Tensor> f1_levels) {
  check_correlation_volume("correlation_volume", f0, f1_levels);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  const Features source = packed(f0, dtype, MemoryFormat::ChannelsLast);
  std::vector<Tensor> volumes;
  for (const Tensor& level : f1_levels) {
    volumes.push_back(dtype == ScalarType::Double ? volume_level<double>(source, level, f0.size(0), f0.size(1), dtype)
                                                  : volume_level<float>(source, level, f0.size(0), f0.size(1), dtype));
  }
  return volumes;
}

// Gradients of one level: in f0 (added to grad_f0 [B, pixels, C]) and in the level, both channels last.
template <class T>
Tensor volume_level_backward(const Tensor& grad, const Features& f0, const Tensor& f1_level, int64_t batch,
                             int64_t channels, Tensor& grad_f0, bool first_level) {
  const ScalarType dtype = f0.tensor.scalar_type();
  const Features f1 = packed(f1_level, dtype, MemoryFormat::ChannelsLast);
  const Tensor g = converted(grad, dtype);
  const int64_t pixels = f0.rows * f0.columns, cells = f1.rows * f1.columns;
  const T scale = T(1) / std::sqrt(static_cast<T>(channels));
  Tensor grad_f1 = empty_channels_last("correlation_volume_backward", f1_level, dtype);
  if (pixels == 0) torch::stable::zero_(grad_f1);
  multiply(Product<T>{data<T>(g), pixels * cells, 1, cells, data<T>(f0.tensor), f0.batch_stride,
                      mutable_data<T>(grad_f1), batch, cells, pixels, channels, scale});
  if (cells == 0) return grad_f1;
  Tensor part = first_level ? grad_f0 : empty_channels_last("correlation_volume_backward", grad_f0, dtype);
  multiply(Product<T>{data<T>(g), pixels * cells, cells, 1, data<T>(f1.tensor), f1.batch_stride, mutable_data<T>(part),
                      batch, pixels, cells, channels, scale});
  if (!first_level) {
    T* sum = mutable_data<T>(grad_f0);
    const T* added = data<T>(part);
    parallel_for(0, grad_f0.numel(), 1 << 15, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) sum[i] += added[i];
    });
  }
  return grad_f1;
}

std::tuple<Tensor, std::vector<Tensor>> correlation_volume_backward(std::vector<Tensor> grads, Tensor f0,
                                                                    std::vector<Tensor> f1_levels) {
  const char* op = "correlation_volume_backward";
  check_correlation_volume(op, f0, f1_levels);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  if (grads.size() != f1_levels.size()) refuse(op, "one gradient for each level is needed");
  const Features source = packed(f0, dtype, MemoryFormat::ChannelsLast);
  Tensor grad_f0 = empty_channels_last(op, f0, dtype);
  if (f1_levels[0].size(2) * f1_levels[0].size(3) == 0) torch::stable::zero_(grad_f0);
  std::vector<Tensor> grad_levels;
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    const Tensor& f1 = f1_levels[level];
    check_gradient(op, grads[level], {f0.size(0), f0.size(2), f0.size(3), f1.size(2), f1.size(3)}, dtype, "f0", f0);
    const auto backward = dtype == ScalarType::Double ? volume_level_backward<double> : volume_level_backward<float>;
    const Tensor grad = backward(grads[level], source, f1, f0.size(0), f0.size(1), grad_f0, level == 0);
    grad_levels.push_back(torch::stable::to(grad, f1.scalar_type()));
  }
  return {torch::stable::to(grad_f0, f0.scalar_type()), grad_levels};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("correlation_volume", TORCH_BOX(&flowfuse::cpu::correlation_volume));
  m.impl("correlation_volume_backward", TORCH_BOX(&flowfuse::cpu::correlation_volume_backward));
}
