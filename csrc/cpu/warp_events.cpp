#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <string>

#include "cpu/dispatch.h"
#include "operators/warp_events.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

// A lambda in a CPU variant (cpu/dispatch.h) must become part of it.

// Rows [first, last) of an item's image or trajectory. Every strip goes through all events of its item, in their
// order: nothing is shared, and nothing depends on how many strips there are.
struct Strip {
  int64_t item, first, last;
};

struct Strips {
  int64_t items, height, per_item;

  Strips(int64_t items_, int64_t height_) : items(items_), height(height_) {
    const int64_t threads = torch::stable::get_num_threads();
    per_item = std::min(height, (threads + items - 1) / items);
  }
  int64_t count() const { return items * per_item; }
  FLOWFUSE_INLINE Strip at(int64_t index) const {
    const int64_t part = index % per_item;
    return {index / per_item, height * part / per_item, height * (part + 1) / per_item};
  }
};

constexpr int64_t kBlock = 1024;

// Calls visit(index) for the events of a strip's item that near(index) names, in their order. They are listed first,
// without a branch: whether an event is near a strip cannot be predicted.
template <class T, class Near, class Visit>
FLOWFUSE_INLINE void for_events(const Warp<T>& params, const Strip& strip, const Near& near, const Visit& visit) {
  int64_t listed[kBlock];
  const int64_t end = params.offsets[strip.item + 1];
  for (int64_t begin = params.offsets[strip.item]; begin < end; begin += kBlock) {
    const int64_t stop = end - begin < kBlock ? end : begin + kBlock;
    int64_t count = 0;
    for (int64_t index = begin; index < stop; ++index) {
      listed[count] = index;
      count += near(index) ? 1 : 0;
    }
    for (int64_t i = 0; i < count; ++i) visit(listed[i]);
  }
}

// Places [last - first, 2] to which events [first, last) are moved; NaN for those left out.
template <class T>
FLOWFUSE_INLINE void move_events(const Warp<T> params, int64_t first, int64_t last, T* places) {
  for (int64_t index = first; index < last; ++index) {
    T x = static_cast<T>(__builtin_nan("")), y = x;
    const int64_t item = item_of(params.offsets, 0, params.items, index);
    WarpEvent<T> event;
    if (item >= 0 && read_event(params, item, index, event)) move_event(params, item, event, x, y);
    places[2 * (index - first)] = x;
    places[2 * (index - first) + 1] = y;
  }
}

template <class T>
FLOWFUSE_INLINE void vote(const Warp<T> params, const T* places, const Strip& strip, int64_t* sums, T* image) {
  const int bits = vote_bits(params.offsets[strip.item + 1] - params.offsets[strip.item]);
  const T unit = static_cast<T>(power_of_two(bits)), scale = static_cast<T>(power_of_two(-bits));
  const T above = static_cast<T>(strip.first - 1), below = static_cast<T>(strip.last);
  const T first_row = static_cast<T>(strip.first), last_row = static_cast<T>(strip.last - 1);
  const T last_column = static_cast<T>(params.width - 1);
  const int64_t size = (strip.last - strip.first) * params.width;
  const int64_t corner = strip.item * params.channels() * params.plane() + strip.first * params.width;
  for (int64_t c = 0; c < params.channels(); ++c) {
    for (int64_t i = 0; i < size; ++i) sums[corner + c * params.plane() + i] = 0;
  }
  const auto near = [&](int64_t index) FLOWFUSE_INLINE_LAMBDA {
    const T y = places[2 * index + 1];
    return (y >= above) & (y < below);  // NaN is not
  };
  for_events(params, strip, near, [&](int64_t index) FLOWFUSE_INLINE_LAMBDA {
    const Square<T> square = square_at(places[2 * index], places[2 * index + 1]);
    const int64_t sign = sign_at(params.events, index);
    int64_t* plane = sums + image_plane(params, strip.item, sign);
    const int64_t vote = vote_of(params, sign);
    if (square.column >= 0 && square.column < last_column && square.row >= first_row && square.row < last_row) {
      int64_t* pixel = plane + image_pixel(params, square, 0);  // nearly always: all four are in the strip
      pixel[0] += vote * to_fixed(corner_weight(square, 0) * unit);
      pixel[1] += vote * to_fixed(corner_weight(square, 1) * unit);
      pixel[params.width] += vote * to_fixed(corner_weight(square, 2) * unit);
      pixel[params.width + 1] += vote * to_fixed(corner_weight(square, 3) * unit);
      return;
    }
    for (int k = 0; k < 4; ++k) {
      if (!in_image(params, square, k)) continue;
      const int64_t pixel = image_pixel(params, square, k), row = static_cast<int64_t>(square.row) + (k >> 1);
      if (row < strip.first || row >= strip.last) continue;
      plane[pixel] += vote * to_fixed(corner_weight(square, k) * unit);
    }
  });
  for (int64_t c = 0; c < params.channels(); ++c) {
    const int64_t start = corner + c * params.plane();
    for (int64_t i = 0; i < size; ++i) image[start + i] = static_cast<T>(sums[start + i]) * scale;
  }
}

// Gradients [N, 2] in the places of events [first, last); 0 for those left out or moved out of the image.
template <class T>
FLOWFUSE_INLINE void place_gradients(const Warp<T> params, const T* grad, int64_t first, int64_t last, T* gradients) {
  for (int64_t begin = first; begin < last; begin += kBlock) {
    const int64_t end = last - begin < kBlock ? last : begin + kBlock;
    T* places = gradients + 2 * begin;  // each is replaced by its gradient
    move_events(params, begin, end, places);
    for (int64_t index = begin; index < end; ++index, places += 2) {
      T gx = 0, gy = 0;
      const int64_t item = item_of(params.offsets, 0, params.items, index);
      if (item >= 0) {
        const int64_t sign = sign_at(params.events, index);
        place_gradient(params, grad, item, sign, places[0], places[1], gx, gy);
      }
      places[0] = gx;
      places[1] = gy;
    }
  }
}

// Sums in float64: a million equal shares would lose in float32.
template <class T>
FLOWFUSE_INLINE void gather_shares(const Warp<T> params, const T* gradients, const Strip& strip, double* sums, T* out) {
  const int64_t planes = 2 * params.points, size = (strip.last - strip.first) * params.width;
  const int64_t corner = strip.item * planes * params.plane() + strip.first * params.width;
  const T above = static_cast<T>(strip.first - 1), below = static_cast<T>(strip.last);
  for (int64_t p = 0; p < planes; ++p) {
    for (int64_t i = 0; i < size; ++i) sums[corner + p * params.plane() + i] = 0;
  }
  const auto near = [&](int64_t index) FLOWFUSE_INLINE_LAMBDA {
    const T y = position_at<T>(params.events.y, params.events.position_dtype, index);
    return ((gradients[2 * index] != 0) | (gradients[2 * index + 1] != 0)) & (y >= above) & (y < below);
  };
  for_events(params, strip, near, [&](int64_t index) FLOWFUSE_INLINE_LAMBDA {
    WarpEvent<T> event;
    if (!read_event(params, strip.item, index, event)) return;
    const T gx = gradients[2 * index], gy = gradients[2 * index + 1];
    const Square<T> square = square_at(event.x, event.y);
    double* plane = sums + strip.item * planes * params.plane();
    for (int64_t k = 1; k <= params.points; ++k) {
      const T share = influence(params, k, event);
      for (int c = 0; c < 4; ++c) {
        const int64_t pixel = source_pixel(params, square, c);
        if (pixel < strip.first * params.width || pixel >= strip.last * params.width) continue;
        const T weight = corner_weight(square, c);
        plane[pixel] += static_cast<double>(weight * (gx * share));
        plane[params.plane() + pixel] += static_cast<double>(weight * (gy * share));
      }
      plane += 2 * params.plane();
    }
  });
  for (int64_t p = 0; p < planes; ++p) {
    const int64_t start = corner + p * params.plane();
    for (int64_t i = 0; i < size; ++i) out[start + i] = static_cast<T>(sums[start + i]);
  }
}

template <class T>
void run_forward(const char* op, const WarpTensors& tensors, const Tensor& image) {
  const Warp<T> params = tensors.params<T>();
  const Tensor places = allocate(op, image, {params.count, 2}, image.scalar_type());
  const Tensor sums = allocate(op, image, shape_of(image), ScalarType::Long);
  T* place = mutable_data<T>(places);
  parallel_for(0, params.count, 4096, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(move_events(params, first, last, place + 2 * first))
  });
  const Strips strips(params.items, params.height);
  int64_t* sum = mutable_data<int64_t>(sums);
  T* out = mutable_data<T>(image);
  parallel_for(0, strips.count(), 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                          vote(params, place, strips.at(index), sum, out))
  });
}

template <class T>
void run_backward(const char* op, const Tensor& grad, const WarpTensors& tensors, const Tensor& grad_trajectory) {
  const Warp<T> params = tensors.params<T>();
  const Tensor gradients = allocate(op, grad, {params.count, 2}, grad.scalar_type());
  const Tensor sums = allocate(op, grad, shape_of(grad_trajectory), ScalarType::Double);
  const T* image = data<T>(grad);
  T* gradient = mutable_data<T>(gradients);
  parallel_for(0, params.count, 4096, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(place_gradients(params, image, first, last, gradient))
  });
  const Strips strips(params.items, params.height);
  double* sum = mutable_data<double>(sums);
  T* out = mutable_data<T>(grad_trajectory);
  parallel_for(0, strips.count(), 1, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                          gather_shares(params, gradient, strips.at(index), sum, out))
  });
}

void check_values(const WarpTensors& tensors) {
  check_event_values("warp_events", tensors.t.size(0), data<int64_t>(tensors.offsets), data<int64_t>(tensors.t0),
                     data<int64_t>(tensors.t1), tensors.offsets.size(0) - 1);
}

Tensor warp_events(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor trajectory, Tensor t0, Tensor t1,
                   Tensor t_ref, std::string mode, int64_t height, int64_t width) {
  const char* op = "warp_events";
  check_warp_events(op, x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  const WarpTensors tensors(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  check_values(tensors);
  const Tensor image = allocate(op, trajectory, tensors.image_shape(), trajectory.scalar_type());
  const bool wide = trajectory.scalar_type() == ScalarType::Double;
  (wide ? run_forward<double> : run_forward<float>)(op, tensors, image);
  return image;
}

Tensor warp_events_backward(Tensor grad, Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor trajectory,
                            Tensor t0, Tensor t1, Tensor t_ref, std::string mode, int64_t height, int64_t width) {
  const char* op = "warp_events_backward";
  check_warp_events(op, x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  const WarpTensors tensors(x, y, t, p, offsets, trajectory, t0, t1, t_ref, mode, height, width);
  check_values(tensors);
  check_gradient(op, grad, tensors.image_shape(), trajectory.scalar_type(), "trajectory", trajectory);
  const Tensor grad_trajectory = allocate(op, trajectory, shape_of(trajectory), trajectory.scalar_type());
  const bool wide = trajectory.scalar_type() == ScalarType::Double;
  (wide ? run_backward<double> : run_backward<float>)(op, torch::stable::contiguous(grad), tensors, grad_trajectory);
  return grad_trajectory;
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("warp_events", TORCH_BOX(&flowfuse::cpu::warp_events));
  m.impl("warp_events_backward", TORCH_BOX(&flowfuse::cpu::warp_events_backward));
}
