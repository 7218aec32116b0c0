// Convex upsampling: one thread a coarse pixel and fine row; a warp reads neighbouring mask values of a plane.
#include <tuple>

#include "cuda/launch.cuh"
#include "operators/convex_upsample.h"

namespace flowfuse::cuda {
namespace {

constexpr int kRows = 8;      // threads that share the fine rows of a coarse pixel in the backward
constexpr int kChannels = 4;  // channels of the field whose gradients one thread sums

// Shapes: field [B, D, h, w], mask [B, 9, f, f, h, w], fine [B, D, f h, f w].
struct Sizes {
  int64_t batch, channels, height, width;
  int factor;
};

__device__ __forceinline__ float exponential(float x) { return ::expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }

// Whether neighbour k (3 x 3, row-major) of coarse pixel (y, x) lies inside the field.
__device__ __forceinline__ bool inside(const Sizes& sizes, int64_t y, int64_t x, int k) {
  const int64_t row = y + k / 3 - 1, column = x + k % 3 - 1;
  return row >= 0 && row < sizes.height && column >= 0 && column < sizes.width;
}

__device__ __forceinline__ int64_t coarse_offset(const Sizes& sizes, int64_t plane, int64_t y, int64_t x) {
  return (plane * sizes.height + y) * sizes.width + x;
}

__device__ __forceinline__ int64_t fine_offset(const Sizes& sizes, int64_t plane, int64_t y, int64_t x, int i, int j) {
  const int f = sizes.factor;
  return ((plane * sizes.height + y) * f + i) * sizes.width * f + x * f + j;
}

// What a softmax divides by, in two parts: weight = e^(logit - top) * share. Their logarithm would lose the digits
// that a large logit has in front.
template <class T>
struct Norm {
  T top, share;
};

// Softmax over the neighbours inside; those outside have weight 0.
template <class T, class M>
__device__ __forceinline__ Norm<T> neighbour_weights(const Sizes& sizes, const M* mask, int64_t b, int64_t y, int64_t x,
                                                     int i, int j, T (&weights)[9]) {
  const int64_t plane = int64_t{sizes.factor} * sizes.factor;
  const int64_t first = (b * 9 * plane + i * sizes.factor + j);
  T top = -static_cast<T>(INFINITY), sum = 0;
  for (int k = 0; k < 9; ++k) {
    weights[k] = -static_cast<T>(INFINITY);
    if (!inside(sizes, y, x, k)) continue;
    weights[k] = static_cast<T>(mask[coarse_offset(sizes, first + k * plane, y, x)]);
    top = weights[k] > top ? weights[k] : top;
  }
  for (int k = 0; k < 9; ++k) {
    weights[k] = inside(sizes, y, x, k) ? exponential(weights[k] - top) : T(0);
    sum += weights[k];
  }
  const T share = 1 / sum;
  for (int k = 0; k < 9; ++k) weights[k] *= share;
  return {top, share};
}

// Coarse pixel (b, y, x) and fine row i of a work item; x is fastest.
struct Item {
  int64_t b, y, x;
  int i;
};

__device__ __forceinline__ Item item_at(const Sizes& sizes, int64_t index) {
  const int64_t x = index % sizes.width, rest = index / sizes.width;
  const int i = static_cast<int>(rest % sizes.factor);
  const int64_t row = rest / sizes.factor;
  return {row / sizes.height, row % sizes.height, x, i};
}

template <class T, class M>
__global__ void upsample(Sizes sizes, const T* __restrict__ field, const M* __restrict__ mask, T* __restrict__ fine) {
  const int64_t items = sizes.batch * sizes.height * sizes.factor * sizes.width;
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Item at = item_at(sizes, index);
    for (int j = 0; j < sizes.factor; ++j) {
      T weights[9];
      neighbour_weights(sizes, mask, at.b, at.y, at.x, at.i, j, weights);
      for (int64_t d = 0; d < sizes.channels; ++d) {
        const int64_t plane = at.b * sizes.channels + d;
        T value = 0;
        for (int k = 0; k < 9; ++k) {
          if (!inside(sizes, at.y, at.x, k)) continue;
          value += weights[k] * field[coarse_offset(sizes, plane, at.y + k / 3 - 1, at.x + k % 3 - 1)];
        }
        fine[fine_offset(sizes, plane, at.y, at.x, at.i, j)] = value;
      }
    }
  }
}

// With g the gradient of a fine pixel and s_k = sum_d g_d field_d(k), the gradient of logit k is
// w_k (s_k - sum_l w_l s_l). norms [B, f h, f w] receives what the softmax divided by.
template <class T, class M>
__global__ void mask_gradient(Sizes sizes, const T* __restrict__ grad, const T* __restrict__ field,
                              const M* __restrict__ mask, M* __restrict__ grad_mask, Norm<T>* __restrict__ norms) {
  const int64_t items = sizes.batch * sizes.height * sizes.factor * sizes.width;
  const int64_t plane = int64_t{sizes.factor} * sizes.factor;
  for (int64_t index = first_item(); index < items; index += item_step()) {
    const Item at = item_at(sizes, index);
    for (int j = 0; j < sizes.factor; ++j) {
      T weights[9], slope[9];
      norms[fine_offset(sizes, at.b, at.y, at.x, at.i, j)] =
          neighbour_weights(sizes, mask, at.b, at.y, at.x, at.i, j, weights);
      for (int k = 0; k < 9; ++k) slope[k] = 0;
      for (int64_t d = 0; d < sizes.channels; ++d) {
        const T g = grad[fine_offset(sizes, at.b * sizes.channels + d, at.y, at.x, at.i, j)];
        for (int k = 0; k < 9; ++k) {
          if (!inside(sizes, at.y, at.x, k)) continue;
          slope[k] += g * field[coarse_offset(sizes, at.b * sizes.channels + d, at.y + k / 3 - 1, at.x + k % 3 - 1)];
        }
      }
      T mean = 0;
      for (int k = 0; k < 9; ++k) mean += weights[k] * slope[k];
      const int64_t first = at.b * 9 * plane + at.i * sizes.factor + j;
      for (int k = 0; k < 9; ++k) {
        grad_mask[coarse_offset(sizes, first + k * plane, at.y, at.x)] = static_cast<M>(weights[k] * (slope[k] - mean));
      }
    }
  }
}

// Each coarse pixel gathers from the fine pixels of the nine around it, whose neighbour it is: a block sums the
// fine rows of 32 pixels of a row in kRows parts, and then the parts in their order.
template <class T, class M>
__global__ void field_gradient(Sizes sizes, const T* __restrict__ grad, const M* __restrict__ mask,
                               const Norm<T>* __restrict__ norms, T* __restrict__ grad_field) {
  using Parts = T[kRows][kChannels][kWarp];
  Parts& parts = *shared_memory<Parts>();
  const int64_t plane = int64_t{sizes.factor} * sizes.factor;
  const int64_t segments = (sizes.width + kWarp - 1) / kWarp;
  const int64_t groups = (sizes.channels + kChannels - 1) / kChannels;
  const int64_t blocks = sizes.batch * groups * sizes.height * segments;
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    const int64_t x = block % segments * kWarp + threadIdx.x, rest = block / segments;
    const int64_t y = rest % sizes.height;
    const int64_t b = rest / sizes.height / groups, first = rest / sizes.height % groups * kChannels;
    T sums[kChannels] = {};
    for (int k = 0; k < 9 && x < sizes.width; ++k) {
      const int64_t row = y - (k / 3 - 1), column = x - (k % 3 - 1);  // the pixel whose neighbour k this one is
      if (row < 0 || row >= sizes.height || column < 0 || column >= sizes.width) continue;
      for (int i = threadIdx.y; i < sizes.factor; i += kRows) {
        for (int j = 0; j < sizes.factor; ++j) {
          const int64_t cell = (b * 9 + k) * plane + i * sizes.factor + j;
          const Norm<T> norm = norms[fine_offset(sizes, b, row, column, i, j)];
          const T logit = static_cast<T>(mask[coarse_offset(sizes, cell, row, column)]);
          const T weight = exponential(logit - norm.top) * norm.share;
          for (int c = 0; c < kChannels; ++c) {
            if (first + c >= sizes.channels) break;
            sums[c] += weight * grad[fine_offset(sizes, b * sizes.channels + first + c, row, column, i, j)];
          }
        }
      }
    }
    __syncthreads();  // the parts of the block before have been read
    for (int c = 0; c < kChannels; ++c) parts[threadIdx.y][c][threadIdx.x] = sums[c];
    __syncthreads();
    const int c = threadIdx.y;
    if (c < kChannels && first + c < sizes.channels && x < sizes.width) {
      T total = 0;
      for (int part = 0; part < kRows; ++part) total += parts[part][c][threadIdx.x];
      grad_field[coarse_offset(sizes, b * sizes.channels + first + c, y, x)] = total;
    }
  }
}

Sizes sizes_of(const Tensor& field, int64_t factor) {
  return {field.size(0), field.size(1), field.size(2), field.size(3), static_cast<int>(factor)};
}

template <class T, class M>
void run_forward(const DeviceCall& call, const Tensor& field, const Tensor& mask, int64_t factor, const Tensor& fine) {
  const Sizes sizes = sizes_of(field, factor);
  const int64_t items = sizes.batch * sizes.height * factor * sizes.width;
  call.launch(upsample<T, M>, blocks_for(items), kThreads, 0, sizes, data<T>(field), data<M>(mask),
              mutable_data<T>(fine));
}

template <class T, class M>
void run_backward(const DeviceCall& call, const Tensor& grad, const Tensor& field, const Tensor& mask, int64_t factor,
                  const Tensor& grad_field, const Tensor& grad_mask) {
  const Sizes sizes = sizes_of(field, factor);
  const Tensor norms = allocate("convex_upsample_backward", field,
                                {sizes.batch, sizes.height * factor, sizes.width * factor, 2}, field.scalar_type());
  const int64_t items = sizes.batch * sizes.height * factor * sizes.width;
  call.launch(mask_gradient<T, M>, blocks_for(items), kThreads, 0, sizes, data<T>(grad), data<T>(field), data<M>(mask),
              mutable_data<M>(grad_mask), mutable_data<Norm<T>>(norms));
  const int64_t blocks =
      sizes.batch * ((sizes.channels + kChannels - 1) / kChannels) * sizes.height * ((sizes.width + kWarp - 1) / kWarp);
  call.launch(field_gradient<T, M>, blocks_for(blocks, 1), dim3(kWarp, kRows), sizeof(T[kRows][kChannels][kWarp]),
              sizes, data<T>(grad), data<M>(mask), data<Norm<T>>(norms), mutable_data<T>(grad_field));
}

Tensor convex_upsample(Tensor field, Tensor mask, int64_t factor) {
  check_convex_upsample("convex_upsample", field, mask, factor);
  const DeviceCall call("convex_upsample", field);
  const Tensor fine =
      allocate("convex_upsample", field, {field.size(0), field.size(1), field.size(2) * factor, field.size(3) * factor},
               field.scalar_type());
  if (fine.numel() == 0) return fine;
  const Tensor values = torch::stable::contiguous(field), logits = torch::stable::contiguous(mask);
  with_feature_type(mask.scalar_type(), [&](auto logit) {
    using M = decltype(logit);
    const auto run = field.scalar_type() == ScalarType::Double ? run_forward<double, M> : run_forward<float, M>;
    run(call, values, logits, factor, fine);
  });
  return fine;
}

std::tuple<Tensor, Tensor> convex_upsample_backward(Tensor grad, Tensor field, Tensor mask, int64_t factor) {
  const char* op = "convex_upsample_backward";
  check_convex_upsample(op, field, mask, factor);
  check_gradient(op, grad, {field.size(0), field.size(1), field.size(2) * factor, field.size(3) * factor},
                 field.scalar_type(), "field", field);
  const DeviceCall call(op, field);
  const Tensor grad_field = allocate(op, field, shape_of(field), field.scalar_type());
  const Tensor grad_mask = allocate(op, mask, shape_of(mask), mask.scalar_type());
  if (grad.numel() == 0) {
    call.clear(grad_mask);
    return {grad_field, grad_mask};
  }
  const Tensor g = torch::stable::contiguous(grad);
  const Tensor values = torch::stable::contiguous(field), logits = torch::stable::contiguous(mask);
  with_feature_type(mask.scalar_type(), [&](auto logit) {
    using M = decltype(logit);
    const auto run = field.scalar_type() == ScalarType::Double ? run_backward<double, M> : run_backward<float, M>;
    run(call, g, values, logits, factor, grad_field, grad_mask);
  });
  return {grad_field, grad_mask};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("convex_upsample", TORCH_BOX(&flowfuse::cuda::convex_upsample));
  m.impl("convex_upsample_backward", TORCH_BOX(&flowfuse::cuda::convex_upsample_backward));
}
