// Convex upsampling. A warp has 32 neighbouring coarse pixels, a lane each: they read neighbouring values of the mask's
// planes. Their fine pixels of a row lie side by side and go through shared memory, so that whole lines are read and
// written.
#include <algorithm>
#include <tuple>
#include <type_traits>

#include "cuda/launch.cuh"
#include "operators/convex_upsample.h"

namespace flowfuse::cuda {
namespace {

constexpr int kWarps = 4, kBlock = kWarps * kWarp;  // small blocks: more of them fit, with many registers a thread
constexpr int kLine = 8;  // fine pixels of a coarse one and a row that are in shared memory at a time

// Shapes: field [B, D, h, w], mask [B, 9, f, f, h, w], fine [B, D, f h, f w]. Kernels take kD channels of the field at a
// time; a field has seldom more.
struct Sizes {
  int64_t batch, channels, height, width;
  int factor;
};

// Of numbers up to 0: the special function unit is off by |x| 2^-24 of the result, which is small where |x| is not.
__device__ __forceinline__ float exponential(float x) { return __expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }

// Which neighbours (3 x 3, row-major) of coarse pixel (y, x) lie inside the field: bit k for number k. None for a lane
// without a pixel.
__device__ __forceinline__ unsigned neighbours_inside(const Sizes& sizes, int64_t y, int64_t x) {
  if (x >= sizes.width) return 0;
  const unsigned columns = (x > 0 ? 1u : 0u) | 2u | (x + 1 < sizes.width ? 4u : 0u);
  return (y > 0 ? columns : 0u) | columns << 3 | (y + 1 < sizes.height ? columns << 6 : 0u);
}

__device__ __forceinline__ int64_t coarse_offset(const Sizes& sizes, int64_t plane, int64_t y, int64_t x) {
  return (plane * sizes.height + y) * sizes.width + x;
}

__device__ __forceinline__ int64_t fine_offset(const Sizes& sizes, int64_t plane, int64_t y, int64_t x, int i, int j) {
  const int f = sizes.factor;
  return ((plane * sizes.height + y) * f + i) * sizes.width * f + x * f + j;
}

// Softmax over the neighbours inside; those outside have weight 0. `logits` is that of neighbour 0.
template <class T, class M>
__device__ __forceinline__ void neighbour_weights(const Sizes& sizes, const M* logits, unsigned inside,
                                                  T (&weights)[9]) {
  const int64_t step = int64_t{sizes.factor} * sizes.factor * sizes.height * sizes.width;
  T top = -static_cast<T>(INFINITY), sum = 0;
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    weights[k] = inside >> k & 1 ? static_cast<T>(logits[k * step]) : -static_cast<T>(INFINITY);
    top = weights[k] > top ? weights[k] : top;
  }
#pragma unroll
  for (int k = 0; k < 9; ++k) {
    weights[k] = inside >> k & 1 ? exponential(weights[k] - top) : T(0);
    sum += weights[k];
  }
  const T share = 1 / sum;
#pragma unroll
  for (int k = 0; k < 9; ++k) weights[k] *= share;
}

// A row of 32 coarse pixels of an item, from `first_x` on, and channels [first, first + kD) of the field there.
struct Segment {
  int64_t b, y, first_x, first;

  __device__ __forceinline__ int64_t x() const { return first_x + threadIdx.x % kWarp; }
};

__device__ __forceinline__ int64_t segments_across(const Sizes& sizes) { return (sizes.width + kWarp - 1) / kWarp; }

// The neighbours' values; 0 outside.
template <int kD, class T>
__device__ __forceinline__ void load_neighbours(const Sizes& sizes, const Segment& at, unsigned inside, const T* field,
                                                T (&near)[9][kD]) {
#pragma unroll
  for (int k = 0; k < 9; ++k) {
#pragma unroll
    for (int d = 0; d < kD; ++d) {
      const int64_t plane = at.b * sizes.channels + at.first + d;
      const bool read = (inside >> k & 1) && at.first + d < sizes.channels;
      near[k][d] = read ? field[coarse_offset(sizes, plane, at.y + k / 3 - 1, at.x() + k % 3 - 1)] : T(0);
    }
  }
}

// Fine pixels [j, j + count) of a row i of the coarse ones of a segment, in the shared memory of a warp. Padded: lanes
// that write or read one each do so in different banks.
template <int kD, class T>
struct Lines {
  T values[kD][kWarp][kLine + 1];

  // Calls visit(value here, its place in fine) for all of them, neighbours by neighbouring lanes.
  template <class Visit>
  __device__ __forceinline__ void visit(const Sizes& sizes, const Segment& at, int i, int j, int count,
                                        const Visit& visit) {
    const int lane = static_cast<int>(threadIdx.x) % kWarp;
    const int pixels = static_cast<int>(smaller<int64_t>(kWarp, sizes.width - at.first_x));
    const int pixel_step = kWarp / count, place_step = kWarp % count;
#pragma unroll 1
    for (int d = 0; d < kD && at.first + d < sizes.channels; ++d) {
      const int64_t row = fine_offset(sizes, at.b * sizes.channels + at.first + d, at.y, at.first_x, i, j);
      int pixel = lane / count, place = lane % count;
#pragma unroll 1
      while (pixel < pixels) {
        visit(values[d][pixel][place], row + int64_t{pixel} * sizes.factor + place);
        pixel += pixel_step;
        place += place_step;
        if (place >= count) {
          place -= count;
          ++pixel;
        }
      }
    }
  }
};

// One block at least, so that ptxas may take more than 128 registers and spills none.
template <int kD, class T, class M>
__global__ void __launch_bounds__(kBlock, 1)
    upsample(Sizes sizes, const T* __restrict__ field, const M* __restrict__ mask, T* __restrict__ fine) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Lines<kD, T>& lines = shared_memory<Lines<kD, T>>()[warp];
  const int f = sizes.factor;
  const int64_t across = segments_across(sizes), groups = (sizes.channels + kD - 1) / kD;
  const int64_t items = sizes.batch * groups * sizes.height * f * across;
  for (int64_t index = int64_t{blockIdx.x} * kWarps + warp; index < items; index += int64_t{gridDim.x} * kWarps) {
    const int i = static_cast<int>(index / across % f);
    const int64_t row = index / across / f, group = row / sizes.height % groups;
    const Segment at{row / sizes.height / groups, row % sizes.height, index % across * kWarp, group * kD};
    const unsigned inside = neighbours_inside(sizes, at.y, at.x());
    T near[9][kD];
    load_neighbours(sizes, at, inside, field, near);
#pragma unroll 1
    for (int first = 0; first < f; first += kLine) {
      const int count = smaller(kLine, f - first);
#pragma unroll 1  // fewer registers and more warps
      for (int j = 0; j < count && at.x() < sizes.width; ++j) {
        const int64_t cell = at.b * 9 * f * f + i * f + first + j;
        T weights[9];
        neighbour_weights(sizes, mask + coarse_offset(sizes, cell, at.y, at.x()), inside, weights);
#pragma unroll
        for (int d = 0; d < kD; ++d) {
          T value = 0;
#pragma unroll
          for (int k = 0; k < 9; ++k) {
            if (inside >> k & 1) value += weights[k] * near[k][d];
          }
          lines.values[d][lane][j] = value;
        }
      }
      __syncwarp();
      lines.visit(sizes, at, i, first, count, [&](T value, int64_t place) { fine[place] = value; });
      __syncwarp();  // the lines have been read
    }
  }
}

template <int kD, class T>
using Parts = T[kWarps][9][kD][kWarp];

// With g the gradient of a fine pixel and s_k = sum_d g_d field_d(k), the gradient of logit k is
// w_k (s_k - sum_l w_l s_l). shares [B, 9, D, h, w] receives what a coarse pixel has for neighbour k: sums of w_k g_d
// over its fine pixels. Each warp of a block has some rows of these; their sums are added in the order of the warps.
template <int kD, class T, class M>
__global__ void __launch_bounds__(kBlock)
    mask_gradient(Sizes sizes, const T* __restrict__ grad, const T* __restrict__ field, const M* __restrict__ mask,
                  M* __restrict__ grad_mask, T* __restrict__ shares) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  Lines<kD, T>& lines = shared_memory<Lines<kD, T>>()[warp];
  Parts<kD, T>& parts = *shared_memory<Parts<kD, T>>();  // in place of the lines, which have been read
  const int f = sizes.factor;
  const int64_t across = segments_across(sizes), groups = (sizes.channels + kD - 1) / kD;
  const int64_t mask_step = int64_t{f} * f * sizes.height * sizes.width;
  for (int64_t index = blockIdx.x; index < sizes.batch * groups * sizes.height * across; index += gridDim.x) {
    const int64_t row = index / across;
    const Segment at{row / sizes.height / groups, row % sizes.height, index % across * kWarp,
                     row / sizes.height % groups * kD};
    const unsigned inside = neighbours_inside(sizes, at.y, at.x());
    T near[9][kD], sums[9][kD] = {};
    load_neighbours(sizes, at, inside, field, near);
    for (int i = warp; i < f; i += kWarps) {
      for (int first = 0; first < f; first += kLine) {
        const int count = smaller(kLine, f - first);
        lines.visit(sizes, at, i, first, count, [&](T& value, int64_t place) { value = grad[place]; });
        __syncwarp();
#pragma unroll 1
        for (int j = 0; j < count && at.x() < sizes.width; ++j) {
          const int64_t cell = at.b * 9 * f * f + i * f + first + j, logit = coarse_offset(sizes, cell, at.y, at.x());
          T weights[9], slopes[9] = {};
          neighbour_weights(sizes, mask + logit, inside, weights);
#pragma unroll
          for (int d = 0; d < kD; ++d) {
            const T g = at.first + d < sizes.channels ? lines.values[d][lane][j] : T(0);
#pragma unroll
            for (int k = 0; k < 9; ++k) {
              slopes[k] += g * near[k][d];
              sums[k][d] += weights[k] * g;
            }
          }
          if (at.first > 0) continue;                      // the first group has the mask's gradient
          for (int64_t d = kD; d < sizes.channels; ++d) {  // that of the other channels too
            const int64_t plane = at.b * sizes.channels + d;
            const T g = grad[fine_offset(sizes, plane, at.y, at.x(), i, first + j)];
            for (int k = 0; k < 9; ++k) {
              if (!(inside >> k & 1)) continue;
              slopes[k] += g * field[coarse_offset(sizes, plane, at.y + k / 3 - 1, at.x() + k % 3 - 1)];
            }
          }
          T mean = 0;
#pragma unroll
          for (int k = 0; k < 9; ++k) mean += inside >> k & 1 ? weights[k] * slopes[k] : T(0);
#pragma unroll
          for (int k = 0; k < 9; ++k) {
            const T slope = inside >> k & 1 ? weights[k] * (slopes[k] - mean) : T(0);
            grad_mask[logit + k * mask_step] = static_cast<M>(slope);
          }
        }
        __syncwarp();  // the lines have been read
      }
    }
    __syncthreads();  // by all warps
    for (int k = 0; k < 9; ++k) {
      for (int d = 0; d < kD; ++d) parts[warp][k][d][lane] = sums[k][d];
    }
    __syncthreads();
    for (int n = warp; n < 9 * kD; n += kWarps) {
      const int k = n / kD, d = n % kD;
      if (at.first + d >= sizes.channels || at.x() >= sizes.width) continue;
      T total = 0;
      for (int part = 0; part < kWarps; ++part) total += parts[part][k][d][lane];
      const int64_t plane = (at.b * 9 + k) * sizes.channels + at.first + d;
      shares[coarse_offset(sizes, plane, at.y, at.x())] = total;
    }
    __syncthreads();  // the parts have been read
  }
}

// Each coarse pixel gathers its shares from the nine around it, whose neighbour it is.
template <class T>
__global__ void field_gradient(Sizes sizes, const T* __restrict__ shares, T* __restrict__ grad_field) {
  const int64_t each = sizes.height * sizes.width, count = sizes.batch * sizes.channels * each;
  for (int64_t index = first_item(); index < count; index += item_step()) {
    const int64_t plane = index / each, y = index % each / sizes.width, x = index % sizes.width;
    const int64_t b = plane / sizes.channels, d = plane % sizes.channels;
    T sum = 0;
    for (int k = 0; k < 9; ++k) {
      const int64_t row = y - (k / 3 - 1), column = x - (k % 3 - 1);  // the pixel whose neighbour k this one is
      if (row < 0 || row >= sizes.height || column < 0 || column >= sizes.width) continue;
      sum += shares[coarse_offset(sizes, (b * 9 + k) * sizes.channels + d, row, column)];
    }
    grad_field[index] = sum;
  }
}

Sizes sizes_of(const Tensor& field, int64_t factor) {
  return {field.size(0), field.size(1), field.size(2), field.size(3), static_cast<int>(factor)};
}

// Calls visit(std::integral_constant: kD), one for fields of up to two channels and one for others.
template <class Visit>
void with_channels(const Sizes& sizes, const Visit& visit) {
  if (sizes.channels <= 2) {
    visit(std::integral_constant<int, 2>{});
  } else {
    visit(std::integral_constant<int, 4>{});
  }
}

template <class T, class M>
void run_forward(const DeviceCall& call, const Tensor& field, const Tensor& mask, int64_t factor, const Tensor& fine) {
  const Sizes sizes = sizes_of(field, factor);
  with_channels(sizes, [&](auto channels) {
    constexpr int kD = channels;
    const int64_t groups = (sizes.channels + kD - 1) / kD, across = (sizes.width + kWarp - 1) / kWarp;
    const int64_t warps = sizes.batch * groups * sizes.height * factor * across;
    call.launch(upsample<kD, T, M>, blocks_for(warps, kWarps), kBlock, kWarps * sizeof(Lines<kD, T>), sizes,
                data<T>(field), data<M>(mask), mutable_data<T>(fine));
  });
}

template <class T, class M>
void run_backward(const DeviceCall& call, const Tensor& grad, const Tensor& field, const Tensor& mask, int64_t factor,
                  const Tensor& grad_field, const Tensor& grad_mask) {
  const Sizes sizes = sizes_of(field, factor);
  const Tensor shares = allocate("convex_upsample_backward", field,
                                 {sizes.batch, 9, sizes.channels, sizes.height, sizes.width}, field.scalar_type());
  with_channels(sizes, [&](auto channels) {
    constexpr int kD = channels;
    const int64_t groups = (sizes.channels + kD - 1) / kD, across = (sizes.width + kWarp - 1) / kWarp;
    const int64_t blocks = sizes.batch * groups * sizes.height * across;
    const size_t bytes = std::max(kWarps * sizeof(Lines<kD, T>), sizeof(Parts<kD, T>));
    call.launch(mask_gradient<kD, T, M>, blocks_for(blocks, 1), kBlock, bytes, sizes, data<T>(grad), data<T>(field),
                data<M>(mask), mutable_data<M>(grad_mask), mutable_data<T>(shares));
  });
  call.launch(field_gradient<T>, blocks_for(field.numel()), kThreads, 0, sizes, data<T>(shares),
              mutable_data<T>(grad_field));
}

// Calls visit(T{}, M{}) with the types of the field and of logits. A mask is taken in its own dtype, but in that of the
// field where one of both is float64: such are not for speed.
template <class Visit>
void with_mask_type(const Tensor& field, const Tensor& mask, const Visit& visit) {
  if (field.scalar_type() == ScalarType::Double) return visit(double{}, double{});
  switch (mask.scalar_type()) {
    case ScalarType::Half: return visit(float{}, torch::headeronly::Half{});
    case ScalarType::BFloat16: return visit(float{}, torch::headeronly::BFloat16{});
    default: return visit(float{}, float{});
  }
}

ScalarType logit_dtype(const Tensor& field, const Tensor& mask) {
  const bool wide = field.scalar_type() == ScalarType::Double || mask.scalar_type() == ScalarType::Double;
  return wide ? field.scalar_type() : mask.scalar_type();
}

Tensor convex_upsample(Tensor field, Tensor mask, int64_t factor) {
  check_convex_upsample("convex_upsample", field, mask, factor);
  const DeviceCall call("convex_upsample", field);
  const Tensor fine =
      allocate("convex_upsample", field, {field.size(0), field.size(1), field.size(2) * factor, field.size(3) * factor},
               field.scalar_type());
  if (fine.numel() == 0) return fine;
  const Tensor values = converted(field, field.scalar_type()), logits = converted(mask, logit_dtype(field, mask));
  with_mask_type(field, mask, [&](auto value, auto logit) {
    run_forward<decltype(value), decltype(logit)>(call, values, logits, factor, fine);
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
  const Tensor grad_mask = allocate(op, mask, shape_of(mask), logit_dtype(field, mask));
  if (grad.numel() == 0) {
    call.clear(grad_mask);
    return {grad_field, torch::stable::to(grad_mask, mask.scalar_type())};
  }
  const Tensor g = converted(grad, grad.scalar_type());
  const Tensor values = converted(field, field.scalar_type()), logits = converted(mask, logit_dtype(field, mask));
  with_mask_type(field, mask, [&](auto value, auto logit) {
    run_backward<decltype(value), decltype(logit)>(call, g, values, logits, factor, grad_field, grad_mask);
  });
  return {grad_field, torch::stable::to(grad_mask, mask.scalar_type())};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("convex_upsample", TORCH_BOX(&flowfuse::cuda::convex_upsample));
  m.impl("convex_upsample_backward", TORCH_BOX(&flowfuse::cuda::convex_upsample_backward));
}
