// Weighted means of neighbours, step by step: rows are shared between the threads, one step after the other.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "cpu/dispatch.h"
#include "operators/propagate.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

// to(x) = sum over neighbours of weight(x) from(x + way), in all channels of row y.
template <class T>
FLOWFUSE_INLINE void gather_row(const PropagationSizes& sizes, const T* weights, int64_t s, const T* from, T* to,
                                int64_t b, int64_t y) {
  const int64_t distance = int64_t{1} << s;
  for (int64_t c = 0; c < sizes.channels; ++c) {
    T* target = to + sizes.value(b, c, y);
    for (int64_t x = 0; x < sizes.width; ++x) target[x] = T(0);
    for (int k = 0; k < kNeighbours; ++k) {
      const int64_t row = y + distance * row_shift(k), shift = distance * column_shift(k);
      if (row < 0 || row >= sizes.height) continue;
      const T* weight = weights + sizes.weight(b, s, k, y);
      const T* source = from + sizes.value(b, c, row) + shift;
      const Columns columns = columns_within(shift, sizes.width);
#pragma GCC ivdep
      for (int64_t x = columns.begin; x < columns.end; ++x) target[x] += weight[x] * source[x];
    }
  }
}

// The other way round: grad_from(x) = sum over neighbours of weight(x - way) grad_to(x - way).
template <class T>
FLOWFUSE_INLINE void return_row(const PropagationSizes& sizes, const T* weights, int64_t s, const T* grad_to,
                                T* grad_from, int64_t b, int64_t y) {
  const int64_t distance = int64_t{1} << s;
  for (int64_t c = 0; c < sizes.channels; ++c) {
    T* target = grad_from + sizes.value(b, c, y);
    for (int64_t x = 0; x < sizes.width; ++x) target[x] = T(0);
    for (int k = 0; k < kNeighbours; ++k) {
      const int64_t row = y - distance * row_shift(k), shift = -distance * column_shift(k);
      if (row < 0 || row >= sizes.height) continue;
      const T* weight = weights + sizes.weight(b, s, k, row) + shift;
      const T* source = grad_to + sizes.value(b, c, row) + shift;
      const Columns columns = columns_within(shift, sizes.width);
#pragma GCC ivdep
      for (int64_t x = columns.begin; x < columns.end; ++x) target[x] += weight[x] * source[x];
    }
  }
}

// grad_weight(x) = sum over channels of grad_to(x) from(x + way), of row y.
template <class T>
FLOWFUSE_INLINE void weight_row(const PropagationSizes& sizes, int64_t s, const T* grad_to, const T* from,
                                T* grad_weights, int64_t b, int64_t y) {
  const int64_t distance = int64_t{1} << s;
  for (int k = 0; k < kNeighbours; ++k) {
    T* target = grad_weights + sizes.weight(b, s, k, y);
    for (int64_t x = 0; x < sizes.width; ++x) target[x] = T(0);
    const int64_t row = y + distance * row_shift(k), shift = distance * column_shift(k);
    if (row < 0 || row >= sizes.height) continue;
    const Columns columns = columns_within(shift, sizes.width);
    for (int64_t c = 0; c < sizes.channels; ++c) {
      const T* grad = grad_to + sizes.value(b, c, y);
      const T* source = from + sizes.value(b, c, row) + shift;
#pragma GCC ivdep
      for (int64_t x = columns.begin; x < columns.end; ++x) target[x] += grad[x] * source[x];
    }
  }
}

// Calls work(b, y) for every row of every item.
template <class Work>
void for_rows(const PropagationSizes& sizes, const Work& work) {
  parallel_for(0, sizes.batch * sizes.height, 4, [&](int64_t first, int64_t last) {
    for (int64_t index = first; index < last; ++index) work(index / sizes.height, index % sizes.height);
  });
}

template <class T>
void gather(const PropagationSizes& sizes, const T* weights, int64_t s, const T* from, T* to) {
  for_rows(sizes, [&](int64_t b, int64_t y) { FLOWFUSE_VARIANTS(gather_row(sizes, weights, s, from, to, b, y)) });
}

template <class T>
void run_forward(const PropagationSizes& sizes, const Tensor& values, const Tensor& weights, const Tensor& result) {
  // From one of two maps into the other, so that the last step writes the result.
  const Tensor spare = allocate("propagate", values, shape_of(values), values.scalar_type());
  const T* from = data<T>(values);
  for (int64_t s = 0; s < sizes.steps; ++s) {
    T* to = mutable_data<T>((sizes.steps - 1 - s) % 2 == 0 ? result : spare);
    gather(sizes, data<T>(weights), s, from, to);
    from = to;
  }
}

template <class T>
void run_backward(const PropagationSizes& sizes, const Tensor& grad, const Tensor& values, const Tensor& weights,
                  const Tensor& grad_values, const Tensor& grad_weights) {
  const char* op = "propagate_backward";
  const int64_t count = sizes.count();
  // What each step but the first began with, and the gradients of two of them.
  const Tensor between = allocate(op, values, {sizes.steps + 1, count}, values.scalar_type());
  T* begins = mutable_data<T>(between);
  T* spare[2] = {begins + (sizes.steps - 1) * count, begins + sizes.steps * count};
  const auto begin_of = [&](int64_t s) { return s == 0 ? data<T>(values) : begins + (s - 1) * count; };
  for (int64_t s = 0; s + 1 < sizes.steps; ++s) gather(sizes, data<T>(weights), s, begin_of(s), begins + s * count);
  const T* grad_to = data<T>(grad);
  for (int64_t s = sizes.steps - 1; s >= 0; --s) {
    T* grad_from = s == 0 ? mutable_data<T>(grad_values) : spare[s % 2];
    for_rows(sizes, [&](int64_t b, int64_t y) {
      FLOWFUSE_VARIANTS(weight_row(sizes, s, grad_to, begin_of(s), mutable_data<T>(grad_weights), b, y);
                        return_row(sizes, data<T>(weights), s, grad_to, grad_from, b, y))
    });
    grad_to = grad_from;
  }
}

Tensor propagate(Tensor values, Tensor weights) {
  const char* op = "propagate";
  check_propagate(op, values, weights);
  const ScalarType dtype = weights.scalar_type();
  const Tensor result = allocate(op, values, shape_of(values), dtype);
  if (result.numel() > 0) {
    const PropagationSizes sizes = propagation_sizes(values, weights);
    const auto run = dtype == ScalarType::Double ? run_forward<double> : run_forward<float>;
    run(sizes, converted(values, dtype), converted(weights, dtype), result);
  }
  return converted(result, values.scalar_type());
}

std::tuple<Tensor, Tensor> propagate_backward(Tensor grad, Tensor values, Tensor weights) {
  const char* op = "propagate_backward";
  check_propagate(op, values, weights);
  check_gradient(op, grad, shape_of(values), values.scalar_type(), "values", values);
  const ScalarType dtype = weights.scalar_type();
  const Tensor grad_values = allocate(op, values, shape_of(values), dtype);
  Tensor grad_weights = allocate(op, weights, shape_of(weights), dtype);
  if (grad.numel() == 0) return {converted(grad_values, values.scalar_type()), torch::stable::zero_(grad_weights)};
  const PropagationSizes sizes = propagation_sizes(values, weights);
  const auto run = dtype == ScalarType::Double ? run_backward<double> : run_backward<float>;
  run(sizes, converted(grad, dtype), converted(values, dtype), converted(weights, dtype), grad_values, grad_weights);
  return {converted(grad_values, values.scalar_type()), grad_weights};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("propagate", TORCH_BOX(&flowfuse::cpu::propagate));
  m.impl("propagate_backward", TORCH_BOX(&flowfuse::cpu::propagate_backward));
}
