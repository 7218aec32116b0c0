#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <tuple>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/exponential.h"
#include "tensors.h"
#include "sampling.h"

namespace flowfuse {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 64;  // coarse pixels of a row handled together

template <class T, class M>
struct Upsample {
  const T* padded;  // field with a border of zeros [B, D, h + 2, w + 2]
  const M* mask;    // [B, 9, f, f, h, w]
  T* fine;          // [B, D, f h, f w]
  const T* grad;    // of fine
  M* grad_mask;
  T* parts;       // gradient in the field, by neighbour [B, D, 9, h, w]
  T* grad_field;  // [B, D, h, w]
  int64_t batch, channels, height, width, factor;

  FLOWFUSE_INLINE int64_t mask_offset(int64_t b, int64_t cell, int64_t y) const {  // cell = i f + j
    return ((b * 9 * factor * factor + cell) * height + y) * width;
  }
  FLOWFUSE_INLINE int64_t neighbour_stride() const { return factor * factor * height * width; }
  // Neighbour k of pixel (y, 0) in channel d.
  FLOWFUSE_INLINE const T* neighbour(int64_t b, int64_t d, int64_t k, int64_t y) const {
    return padded + ((b * channels + d) * (height + 2) + y + k / 3) * (width + 2) + k % 3;
  }
  // Fine pixel (y f + i, j) in channel d.
  FLOWFUSE_INLINE int64_t fine_offset(int64_t b, int64_t d, int64_t cell, int64_t y) const {
    return ((b * channels + d) * factor * height + y * factor + cell / factor) * factor * width + cell % factor;
  }
};

// Softmax over the neighbours inside the field for one fine position of pixels x0 .. x0 + count of row y.
template <class T, class M>
FLOWFUSE_INLINE void neighbour_weights(const Upsample<T, M>& job, int64_t b, int64_t cell, int64_t y, int64_t x0,
                                       int64_t count, T weights[9][kBlock]) {
  const T outside = -static_cast<T>(__builtin_inf());
  const M* mask = job.mask + job.mask_offset(b, cell, y) + x0;
  T top[kBlock], sum[kBlock];
  for (int64_t x = 0; x < count; ++x) top[x] = outside;
  for (int64_t k = 0; k < 9; ++k) {
    const bool missing = (k < 3 && y == 0) || (k >= 6 && y == job.height - 1);
    for (int64_t x = 0; x < count; ++x) {
      weights[k][x] = missing ? outside : static_cast<T>(mask[k * job.neighbour_stride() + x]);
    }
    if (k % 3 == 0 && x0 == 0) weights[k][0] = outside;
    if (k % 3 == 2 && x0 + count == job.width) weights[k][count - 1] = outside;
    for (int64_t x = 0; x < count; ++x) top[x] = weights[k][x] > top[x] ? weights[k][x] : top[x];
  }
  for (int64_t x = 0; x < count; ++x) sum[x] = T(0);
  for (int64_t k = 0; k < 9; ++k) {
    for (int64_t x = 0; x < count; ++x) {
      weights[k][x] = exponential(weights[k][x] - top[x]);
      sum[x] += weights[k][x];
    }
  }
  for (int64_t x = 0; x < count; ++x) sum[x] = 1 / sum[x];
  for (int64_t k = 0; k < 9; ++k) {
    for (int64_t x = 0; x < count; ++x) weights[k][x] *= sum[x];
  }
}

template <class T, class M>
FLOWFUSE_INLINE void upsample_row(const Upsample<T, M>& job, int64_t b, int64_t y) {
  T weights[9][kBlock], values[kBlock];
  for (int64_t x0 = 0; x0 < job.width; x0 += kBlock) {
    const int64_t count = job.width - x0 < kBlock ? job.width - x0 : kBlock;
    for (int64_t cell = 0; cell < job.factor * job.factor; ++cell) {
      neighbour_weights(job, b, cell, y, x0, count, weights);
      for (int64_t d = 0; d < job.channels; ++d) {
        for (int64_t x = 0; x < count; ++x) values[x] = T(0);
        for (int64_t k = 0; k < 9; ++k) {
          const T* field = job.neighbour(b, d, k, y) + x0;
          for (int64_t x = 0; x < count; ++x) values[x] += weights[k][x] * field[x];
        }
        T* fine = job.fine + job.fine_offset(b, d, cell, y) + x0 * job.factor;
        for (int64_t x = 0; x < count; ++x) fine[x * job.factor] = values[x];
      }
    }
  }
}

// With g the gradient of a fine pixel and s_k = sum_d g_d field_d(k): that of logit k is
// w_k (s_k - sum_l w_l s_l), that of neighbour k in channel d receives w_k g_d.
template <class T, class M>
FLOWFUSE_INLINE void row_backward(const Upsample<T, M>& job, int64_t b, int64_t y) {
  T weights[9][kBlock], slope[9][kBlock], grad[kBlock], mean[kBlock];
  for (int64_t x0 = 0; x0 < job.width; x0 += kBlock) {
    const int64_t count = job.width - x0 < kBlock ? job.width - x0 : kBlock;
    for (int64_t cell = 0; cell < job.factor * job.factor; ++cell) {
      neighbour_weights(job, b, cell, y, x0, count, weights);
      for (int64_t k = 0; k < 9; ++k) {
        for (int64_t x = 0; x < count; ++x) slope[k][x] = T(0);
      }
      for (int64_t d = 0; d < job.channels; ++d) {
        const T* fine = job.grad + job.fine_offset(b, d, cell, y) + x0 * job.factor;
        for (int64_t x = 0; x < count; ++x) grad[x] = fine[x * job.factor];
        for (int64_t k = 0; k < 9; ++k) {
          const T* field = job.neighbour(b, d, k, y) + x0;
          T* part = job.parts + (((b * job.channels + d) * 9 + k) * job.height + y) * job.width + x0;
          for (int64_t x = 0; x < count; ++x) {
            slope[k][x] += grad[x] * field[x];
            const T share = weights[k][x] * grad[x];
            part[x] = cell == 0 ? share : part[x] + share;
          }
        }
      }
      for (int64_t x = 0; x < count; ++x) mean[x] = T(0);
      for (int64_t k = 0; k < 9; ++k) {
        for (int64_t x = 0; x < count; ++x) mean[x] += weights[k][x] * slope[k][x];
      }
      M* target = job.grad_mask + job.mask_offset(b, cell, y) + x0;
      for (int64_t k = 0; k < 9; ++k) {
        for (int64_t x = 0; x < count; ++x) {
          target[k * job.neighbour_stride() + x] = static_cast<M>(weights[k][x] * (slope[k][x] - mean[x]));
        }
      }
    }
  }
}

// Each coarse pixel gathers what the pixels around it gave: in one order, whatever the threads.
template <class T, class M>
FLOWFUSE_INLINE void gather_row(const Upsample<T, M>& job, int64_t plane, int64_t y) {
  T* target = job.grad_field + (plane * job.height + y) * job.width;
  for (int64_t x = 0; x < job.width; ++x) target[x] = T(0);
  for (int64_t k = 0; k < 9; ++k) {
    const int64_t row = y - (k / 3 - 1), shift = 1 - k % 3;  // the pixel whose neighbour k this one is
    if (row < 0 || row >= job.height) continue;
    const T* part = job.parts + ((plane * 9 + k) * job.height + row) * job.width;
    const int64_t begin = shift < 0 ? 1 : 0, end = shift > 0 ? job.width - 1 : job.width;
    for (int64_t x = begin; x < end; ++x) target[x] += part[x + shift];
  }
}

template <class T, class M>
Upsample<T, M> prepare(const Tensor& field, const Tensor& mask, const Tensor& padded, int64_t factor) {
  Upsample<T, M> job{};
  job.batch = field.size(0);
  job.channels = field.size(1);
  job.height = field.size(2);
  job.width = field.size(3);
  job.factor = factor;
  job.padded = data<T>(padded);
  job.mask = data<M>(mask);
  return job;
}

template <class T, class M>
void run_forward(const Tensor& field, const Tensor& mask, const Tensor& padded, int64_t factor, const Tensor& fine) {
  Upsample<T, M> job = prepare<T, M>(field, mask, padded, factor);
  job.fine = mutable_data<T>(fine);
  parallel_for(0, job.batch * job.height, 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          upsample_row(job, row / job.height, row % job.height))
  });
}

template <class T, class M>
void run_backward(const Tensor& grad, const Tensor& field, const Tensor& mask, const Tensor& padded, int64_t factor,
                  const Tensor& grad_field, const Tensor& grad_mask) {
  Upsample<T, M> job = prepare<T, M>(field, mask, padded, factor);
  const Tensor parts = allocate("convex_upsample_backward", field,
                                {job.batch, job.channels, 9, job.height, job.width}, field.scalar_type());
  job.grad = data<T>(grad);
  job.parts = mutable_data<T>(parts);
  job.grad_field = mutable_data<T>(grad_field);
  job.grad_mask = mutable_data<M>(grad_mask);
  parallel_for(0, job.batch * job.height, 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          row_backward(job, row / job.height, row % job.height))
  });
  parallel_for(0, job.batch * job.channels * job.height, 16, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t row = first; row < last; ++row)
                          gather_row(job, row / job.height, row % job.height))
  });
}

Tensor zero_bordered(const Tensor& field) {
  return torch::stable::pad(torch::stable::contiguous(field), {1, 1, 1, 1});
}

Tensor convex_upsample(Tensor field, Tensor mask, int64_t factor) {
  check_convex_upsample(field, mask, factor);
  const int64_t batch = field.size(0), channels = field.size(1), height = field.size(2), width = field.size(3);
  const Tensor fine =
      allocate("convex_upsample", field, {batch, channels, height * factor, width * factor}, field.scalar_type());
  if (fine.numel() == 0) return fine;
  const Tensor padded = zero_bordered(field), logits = torch::stable::contiguous(mask);
  with_feature_type(mask.scalar_type(), [&](auto logit) {
    using M = decltype(logit);
    const auto run = field.scalar_type() == ScalarType::Double ? run_forward<double, M> : run_forward<float, M>;
    run(field, logits, padded, factor, fine);
  });
  return fine;
}

std::tuple<Tensor, Tensor> convex_upsample_backward(Tensor grad, Tensor field, Tensor mask, int64_t factor) {
  const char* op = "convex_upsample_backward";
  check_convex_upsample(field, mask, factor);
  const int64_t batch = field.size(0), channels = field.size(1), height = field.size(2), width = field.size(3);
  check_gradient(op, grad, {batch, channels, height * factor, width * factor}, field.scalar_type(), "field", field);
  const Tensor grad_field = allocate(op, field, shape_of(field), field.scalar_type());
  Tensor grad_mask = allocate(op, mask, shape_of(mask), mask.scalar_type());
  if (grad.numel() == 0) return {grad_field, torch::stable::zero_(grad_mask)};
  const Tensor padded = zero_bordered(field), logits = torch::stable::contiguous(mask);
  const Tensor g = torch::stable::contiguous(grad);
  with_feature_type(mask.scalar_type(), [&](auto logit) {
    using M = decltype(logit);
    const auto run = field.scalar_type() == ScalarType::Double ? run_backward<double, M> : run_backward<float, M>;
    run(g, field, logits, padded, factor, grad_field, grad_mask);
  });
  return {grad_field, grad_mask};
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("convex_upsample", TORCH_BOX(&flowfuse::convex_upsample));
  m.impl("convex_upsample_backward", TORCH_BOX(&flowfuse::convex_upsample_backward));
}
