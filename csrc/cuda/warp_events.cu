// Images of warped events: one thread an event. Votes and shares of gradients are added up as fixed-point integers,
// whose sums do not depend on the order of the atomics.
#include <string>

#include "cuda/launch.cuh"
#include "operators/warp_events.h"

namespace flowfuse::cuda {
namespace {

__device__ __forceinline__ void add(AtomicSum* sum, int64_t value) { atomicAdd(sum, static_cast<AtomicSum>(value)); }

constexpr int kCorners = 4;

// Adds up the values of the lanes of a whole warp that have the same key (not negative; negative: nothing to add): the
// first of them gets the sums, and true. Atomic additions to one address would wait for each other.
__device__ __forceinline__ bool sum_together(int64_t key, int64_t (&values)[kCorners]) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const unsigned same = __match_any_sync(kWholeWarp, static_cast<AtomicSum>(key));
  const bool first = __ffs(static_cast<int>(same)) - 1 == lane;
  // All lanes take part in each shuffle; most often there is none, for events in turn lie far apart.
  for (unsigned others = key < 0 ? 0 : same & (same - 1); __any_sync(kWholeWarp, others != 0); others &= others - 1) {
    const int source = others == 0 ? lane : __ffs(static_cast<int>(others)) - 1;
    for (int64_t& value : values) {
      const int64_t other = __shfl_sync(kWholeWarp, value, source);
      if (first && others != 0) value += other;
    }
  }
  return first && key >= 0;
}

template <class T>
__global__ void __launch_bounds__(kThreads) vote(Warp<T> params, AtomicSum* __restrict__ sums) {
  // Every thread of a block makes the same number of steps: a warp adds together what goes to one place.
  for (int64_t start = int64_t{blockIdx.x} * blockDim.x; start < params.count; start += item_step()) {
    const int64_t index = start + threadIdx.x;
    const int64_t item = index < params.count ? item_of(params.offsets, 0, params.items, index) : -1;
    int64_t key = -1, votes[kCorners] = {};
    Square<T> square{};
    AtomicSum* plane = sums;
    WarpEvent<T> event;
    if (item >= 0 && read_event(params, item, index, event)) {
      T x, y;
      move_event(params, item, event, x, y);
      const T unit = static_cast<T>(power_of_two(vote_bits(events_of(params.offsets, item, params.count))));
      const int64_t sign = sign_at(params.events, index), first = image_plane(params, item, sign);
      square = square_at(x, y);
      plane += first;
      for (int corner = kCorners - 1; corner >= 0; --corner) {
        if (!in_image(params, square, corner)) continue;
        votes[corner] = vote_of(params, sign) * to_fixed(corner_weight(square, corner) * unit);
        key = (first + image_pixel(params, square, corner)) * kCorners + corner;  // of the first one in the image
      }
    }
    if (!sum_together(key, votes)) continue;
    for (int corner = 0; corner < kCorners; ++corner) {
      if (in_image(params, square, corner)) add(plane + image_pixel(params, square, corner), votes[corner]);
    }
  }
}

template <class T>
__global__ void scale_votes(Warp<T> params, const int64_t* __restrict__ sums, T* __restrict__ image) {
  const int64_t pixels = params.channels() * params.plane();
  for (int64_t item = blockIdx.y; item < params.items; item += gridDim.y) {
    const T scale = static_cast<T>(power_of_two(-vote_bits(events_of(params.offsets, item, params.count))));
    for (int64_t pixel = first_item(); pixel < pixels; pixel += item_step()) {
      image[item * pixels + pixel] = static_cast<T>(sums[item * pixels + pixel]) * scale;
    }
  }
}

// Writes the gradients [N, 2] in the places of the events, 0 for those left out or moved out of the image, and of
// each item the ordered_bits of its largest finite slope, which is such a gradient times a control point's influence.
template <class T>
__global__ void __launch_bounds__(kThreads)
    place_gradients(Warp<T> params, const T* __restrict__ grad, T* __restrict__ gradients,
                    AtomicSum* __restrict__ largest) {
  // Every thread of a block makes the same number of steps: a warp finds its largest slope together.
  for (int64_t start = int64_t{blockIdx.x} * blockDim.x; start < params.count; start += item_step()) {
    const int64_t index = start + threadIdx.x;
    const int64_t item = index < params.count ? item_of(params.offsets, 0, params.items, index) : -1;
    T gx = 0, gy = 0;
    AtomicSum slope = 0;
    WarpEvent<T> event;
    if (item >= 0 && read_event(params, item, index, event)) {
      T x, y;
      move_event(params, item, event, x, y);
      place_gradient(params, grad, item, sign_at(params.events, index), x, y, gx, gy);
      for (int64_t k = 1; k <= params.points && (gx != 0 || gy != 0); ++k) {
        const T share = influence(params, k, event);
        for (const T value : {gx * share, gy * share}) {
          const AtomicSum bits = ordered_bits(::fabs(static_cast<double>(value)));
          if (bits < kInfinityBits && bits > slope) slope = bits;
        }
      }
    }
    if (index < params.count) {
      gradients[2 * index] = gx;
      gradients[2 * index + 1] = gy;
    }
    const int64_t first = __shfl_sync(kWholeWarp, item, 0);
    if (__all_sync(kWholeWarp, item == first || slope == 0)) {  // one atomic for the warp
      for (int step = kWarp / 2; step > 0; step /= 2) {
        const AtomicSum other = __shfl_xor_sync(kWholeWarp, slope, step);
        slope = other > slope ? other : slope;
      }
      if (threadIdx.x % kWarp == 0 && slope != 0) atomicMax(largest + first, slope);
    } else if (slope != 0) {
      atomicMax(largest + item, slope);
    }
  }
}

// A share that is not finite sets its cell's bit in `broken`.
template <class T>
__global__ void __launch_bounds__(kThreads)
    add_shares(Warp<T> params, const T* __restrict__ gradients, const AtomicSum* __restrict__ largest,
               AtomicSum* __restrict__ sums, unsigned* __restrict__ broken) {
  for (int64_t index = first_item(); index < params.count; index += item_step()) {
    const T gx = gradients[2 * index], gy = gradients[2 * index + 1];
    if (gx == 0 && gy == 0) continue;
    const int64_t item = item_of(params.offsets, 0, params.items, index);
    WarpEvent<T> event;
    if (item < 0 || !read_event(params, item, index, event)) continue;
    const double unit = power_of_two(share_bits(largest[item], events_of(params.offsets, item, params.count)));
    const Square<T> square = square_at(event.x, event.y);
    int64_t cell = item * params.points * 2 * params.plane();
    for (int64_t k = 1; k <= params.points; ++k) {
      const T share = influence(params, k, event);
      for (const T slope : {gx * share, gy * share}) {
        const bool finite = ordered_bits(::fabs(static_cast<double>(slope))) < kInfinityBits;
        for (int corner = 0; corner < 4; ++corner) {
          const int64_t target = cell + source_pixel(params, square, corner);
          if (finite) {
            add(sums + target, to_fixed(static_cast<double>(corner_weight(square, corner) * slope) * unit));
          } else {
            atomicOr(broken + target / 32, 1u << (target % 32));
          }
        }
        cell += params.plane();
      }
    }
  }
}

template <class T>
__global__ void scale_shares(Warp<T> params, const AtomicSum* __restrict__ largest, const int64_t* __restrict__ sums,
                             const unsigned* __restrict__ broken, T* __restrict__ grad) {
  const int64_t cells = params.points * 2 * params.plane();
  for (int64_t item = blockIdx.y; item < params.items; item += gridDim.y) {
    const double scale = power_of_two(-share_bits(largest[item], events_of(params.offsets, item, params.count)));
    for (int64_t index = first_item(); index < cells; index += item_step()) {
      const int64_t cell = item * cells + index;
      const bool finite = (broken[cell / 32] >> (cell % 32) & 1) == 0;
      grad[cell] = finite ? static_cast<T>(static_cast<double>(sums[cell]) * scale) : static_cast<T>(NAN);
    }
  }
}

template <class T>
void run_forward(const DeviceCall& call, const WarpTensors& tensors, const Tensor& image) {
  const Warp<T> params = tensors.params<T>();
  const Tensor sums = allocate("warp_events", image, shape_of(image), ScalarType::Long);
  call.clear(sums);
  call.launch(vote<T>, blocks_for(params.count), kThreads, 0, params, mutable_data<AtomicSum>(sums));
  call.launch(scale_votes<T>, batch_grid(params.channels() * params.plane(), params.items), kThreads, 0, params,
              data<int64_t>(sums), mutable_data<T>(image));
}

template <class T>
void run_backward(const DeviceCall& call, const Tensor& grad, const WarpTensors& tensors,
                  const Tensor& grad_trajectory) {
  const char* op = "warp_events_backward";
  const Warp<T> params = tensors.params<T>();
  const Tensor gradients = allocate(op, grad, {params.count, 2}, grad.scalar_type());
  const Tensor largest = allocate(op, grad, {params.items}, ScalarType::Long);
  const Tensor sums = allocate(op, grad, shape_of(grad_trajectory), ScalarType::Long);
  const Tensor broken = allocate(op, grad, {(grad_trajectory.numel() + 31) / 32}, ScalarType::Int);
  for (const Tensor& tensor : {largest, sums, broken}) call.clear(tensor);
  const unsigned blocks = blocks_for(params.count);
  call.launch(place_gradients<T>, blocks, kThreads, 0, params, data<T>(grad), mutable_data<T>(gradients),
              mutable_data<AtomicSum>(largest));
  call.launch(add_shares<T>, blocks, kThreads, 0, params, data<T>(gradients), data<AtomicSum>(largest),
              mutable_data<AtomicSum>(sums), mutable_data<unsigned>(broken));
  call.launch(scale_shares<T>, batch_grid(params.points * 2 * params.plane(), params.items), kThreads, 0, params,
              data<AtomicSum>(largest), data<int64_t>(sums), data<unsigned>(broken), mutable_data<T>(grad_trajectory));
}

Tensor warp_events(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor trajectory, Tensor t0, Tensor t1,
                   Tensor t_ref, std::string mode, int64_t height, int64_t width) {
  check_warp_events("warp_events", x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  const DeviceCall call("warp_events", trajectory);
  const WarpTensors tensors(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  const Tensor image = allocate("warp_events", trajectory, tensors.image_shape(), trajectory.scalar_type());
  const bool wide = trajectory.scalar_type() == ScalarType::Double;
  (wide ? run_forward<double> : run_forward<float>)(call, tensors, image);
  return image;
}

Tensor warp_events_backward(Tensor grad, Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor trajectory,
                            Tensor t0, Tensor t1, Tensor t_ref, std::string mode, int64_t height, int64_t width) {
  const char* op = "warp_events_backward";
  check_warp_events(op, x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  const DeviceCall call(op, trajectory);
  const WarpTensors tensors(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  check_gradient(op, grad, tensors.image_shape(), trajectory.scalar_type(), "trajectory", trajectory);
  const Tensor grad_trajectory = allocate(op, trajectory, shape_of(trajectory), trajectory.scalar_type());
  const bool wide = trajectory.scalar_type() == ScalarType::Double;
  (wide ? run_backward<double> : run_backward<float>)(call, torch::stable::contiguous(grad), tensors, grad_trajectory);
  return grad_trajectory;
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("warp_events", TORCH_BOX(&flowfuse::cuda::warp_events));
  m.impl("warp_events_backward", TORCH_BOX(&flowfuse::cuda::warp_events_backward));
}
