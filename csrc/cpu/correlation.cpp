#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <tuple>

#include "checks.h"
#include "cpu/dispatch.h"
#include "tensors.h"
#include "sampling.h"

namespace flowfuse {
namespace {

using torch::stable::parallel_for;

constexpr int kMaxTaps = (2 * kMaxRadius + 2) * (2 * kMaxRadius + 2);
constexpr int kMaxSide2 = (2 * kMaxRadius + 1) * (2 * kMaxRadius + 1);
constexpr int64_t kBlock = 16;                     // pixels written together: a cache line of float32
constexpr int64_t kChannelChunk = 64;              // channels of f1's gradient that one task owns
constexpr int64_t kWorkspace = int64_t{64} << 20;  // bytes of tap gradients held at a time

template <class T>
struct Level {
  const T* values;  // volume: [B, pixels, rows, columns]; on demand: f1 [B, rows, columns, C]
  T* grad;
  int64_t batch_stride, rows, columns;
};

template <class T>
struct Lookup {
  Level<T> levels[kMaxLevels];
  int level_count;
  bool on_demand;  // features, not volumes
  const T* f0;     // [B, pixels, C]
  T* grad_f0;
  int64_t f0_stride, channels;
  T scale;
  const double* coords;  // [B, 2, pixels]
  T* grad_coords;        // null when not asked for
  T* output;             // [B, levels * side^2, pixels]
  const T* grad;
  int64_t batch, pixels;
  int radius;

  FLOWFUSE_INLINE int side() const { return 2 * radius + 1; }
  FLOWFUSE_INLINE int taps() const { return (2 * radius + 2) * (2 * radius + 2); }
  FLOWFUSE_INLINE int64_t item_size() const { return int64_t{level_count} * side() * side() * pixels; }
  FLOWFUSE_INLINE Window<T> window(int64_t b, int64_t pixel, int level) const {
    const double* at = coords + b * 2 * pixels + pixel;
    return window_at<T>(at[0], at[pixels], level, radius, levels[level].rows, levels[level].columns);
  }
};

// Products of n channels with sixteen partial sums, which the compiler keeps in vector registers.
template <class T>
FLOWFUSE_INLINE T dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kLanes = 16;
  T lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += a[c + j] * b[c + j];
  }
  T rest = 0;
  for (; c < n; ++c) rest += a[c] * b[c];
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0] + rest;
}

// Calls visit(tap, cell) for the taps inside the map; tap counts x slow, cell = row * columns + column.
template <class T, class Visit>
FLOWFUSE_INLINE void visit_taps(const Window<T>& window, int radius, int64_t rows, int64_t columns,
                                const Visit& visit) {
  const int side = 2 * radius + 2;
  const TapRange range = taps_inside(window, radius, rows, columns);
  for (int64_t dy = range.y0; dy < range.y1; ++dy) {
    const int64_t row = (window.y + dy) * columns + window.x;
    for (int64_t dx = range.x0; dx < range.x1; ++dx) visit(dx * side + dy, row + dx);
  }
}

// Values of the taps of one pixel and level.
template <class T>
FLOWFUSE_INLINE void read_taps(const Lookup<T>& job, int64_t b, int64_t pixel, int level,
                               const Window<T>& window, T* taps) {
  const Level<T>& map = job.levels[level];
  for (int k = 0; k < job.taps(); ++k) taps[k] = T(0);
  if (!job.on_demand) {
    const T* values = map.values + b * map.batch_stride + pixel * map.rows * map.columns;
    visit_taps(window, job.radius, map.rows, map.columns,
               [&](int64_t tap, int64_t cell) __attribute__((always_inline)) { taps[tap] = values[cell]; });
    return;
  }
  const T* f0 = job.f0 + b * job.f0_stride + pixel * job.channels;
  const T* f1 = map.values + b * map.batch_stride;
  visit_taps(window, job.radius, map.rows, map.columns,
             [&](int64_t tap, int64_t cell) __attribute__((always_inline)) {
               taps[tap] = job.scale * dot(f0, f1 + cell * job.channels, job.channels);
             });
}

// Pixels are handled a block at a time, so that each channel of the output receives whole cache lines.
template <class T>
FLOWFUSE_INLINE void lookup_block(const Lookup<T>& job, int64_t b, int64_t begin, int64_t end) {
  T taps[kMaxTaps];
  T values[kMaxSide2 * kBlock];
  const int window_size = job.side() * job.side();
  for (int level = 0; level < job.level_count; ++level) {
    for (int64_t pixel = begin; pixel < end; ++pixel) {
      const Window<T> window = job.window(b, pixel, level);
      T* out = values + (pixel - begin);
      if (window.reach == Reach::kNear) {
        read_taps(job, b, pixel, level, window, taps);
        combine_taps(taps, window, job.radius, out, kBlock);
      } else {
        const T fill = window.reach == Reach::kMissing ? static_cast<T>(__builtin_nan("")) : T(0);
        for (int k = 0; k < window_size; ++k) out[k * kBlock] = fill;
      }
    }
    T* target = job.output + b * job.item_size() + level * window_size * job.pixels + begin;
    for (int k = 0; k < window_size; ++k) {
      for (int64_t i = 0; i < end - begin; ++i) target[k * job.pixels + i] = values[k * kBlock + i];
    }
  }
}

template <class T>
FLOWFUSE_INLINE void lookup_blocks(const Lookup<T>& job, int64_t blocks, int64_t first, int64_t last) {
  for (int64_t task = first; task < last; ++task) {
    const int64_t begin = task % blocks * kBlock;
    lookup_block(job, task / blocks, begin, begin + kBlock < job.pixels ? begin + kBlock : job.pixels);
  }
}

template <class T>
void run_lookup(const Lookup<T>& job) {
  const int64_t blocks = (job.pixels + kBlock - 1) / kBlock;
  parallel_for(0, job.batch * blocks, 4, [&](int64_t first, int64_t last) {
    FLOWFUSE_VARIANTS(lookup_blocks(job, blocks, first, last))
  });
}

// Gradients that belong to one pixel: its slice of the volumes or its f0, and its coordinates. On demand the
// gradients of the taps are kept in `kept` [levels, taps] for spread_to_f1.
template <class T>
FLOWFUSE_INLINE void pixel_backward(const Lookup<T>& job, int64_t b, int64_t pixel, T* kept) {
  T taps[kMaxTaps], grad_taps[kMaxTaps];
  const int window_size = job.side() * job.side();
  T* grad_f0 = nullptr;
  if (job.on_demand) {
    grad_f0 = job.grad_f0 + (b * job.pixels + pixel) * job.channels;
    for (int64_t c = 0; c < job.channels; ++c) grad_f0[c] = T(0);
  }
  T gx = 0, gy = 0;
  for (int level = 0; level < job.level_count; ++level) {
    const Level<T>& map = job.levels[level];
    const int64_t cells = map.rows * map.columns;
    T* grad_volume = nullptr;
    if (!job.on_demand) {
      grad_volume = map.grad + (b * job.pixels + pixel) * cells;
      for (int64_t k = 0; k < cells; ++k) grad_volume[k] = T(0);
    }
    const Window<T> window = job.window(b, pixel, level);
    if (window.reach != Reach::kNear) continue;
    const T* grad = job.grad + b * job.item_size() + level * window_size * job.pixels + pixel;
    if (job.grad_coords != nullptr) {
      read_taps(job, b, pixel, level, window, taps);
      T level_x = 0, level_y = 0;
      centre_gradient(grad, job.pixels, taps, window, job.radius, level_x, level_y);
      gx += level_x / static_cast<T>(int64_t{1} << level);
      gy += level_y / static_cast<T>(int64_t{1} << level);
    }
    spread_gradient(grad, job.pixels, window, job.radius, grad_taps);
    if (!job.on_demand) {
      visit_taps(window, job.radius, map.rows, map.columns,
                 [&](int64_t tap, int64_t cell)
                     __attribute__((always_inline)) { grad_volume[cell] = grad_taps[tap]; });
      continue;
    }
    T* keep = kept + level * job.taps();
    for (int k = 0; k < job.taps(); ++k) keep[k] = job.scale * grad_taps[k];
    const T* f1 = map.values + b * map.batch_stride;
    visit_taps(window, job.radius, map.rows, map.columns,
               [&](int64_t tap, int64_t cell) __attribute__((always_inline)) {
                 const T factor = keep[tap];
                 const T* feature = f1 + cell * job.channels;
                 for (int64_t c = 0; c < job.channels; ++c) grad_f0[c] += factor * feature[c];
               });
  }
  if (job.grad_coords != nullptr) {
    T* target = job.grad_coords + b * 2 * job.pixels + pixel;
    target[0] = gx;
    target[job.pixels] = gy;
  }
}

template <class T>
FLOWFUSE_INLINE void pixels_backward(const Lookup<T>& job, int64_t item, T* kept, int64_t first, int64_t last) {
  const int64_t stride = int64_t{job.level_count} * job.taps();
  for (int64_t task = first; task < last; ++task) {
    pixel_backward(job, item + task / job.pixels, task % job.pixels, kept + task * stride);
  }
}

// Gradient of f1's level in a chunk of channels: one task owns it and adds the pixels in their order.
template <class T>
FLOWFUSE_INLINE void spread_to_f1(const Lookup<T>& job, int64_t b, int level, int64_t chunk, const T* kept) {
  const Level<T>& map = job.levels[level];
  const int64_t first = chunk * kChannelChunk;
  const int64_t count = job.channels - first < kChannelChunk ? job.channels - first : kChannelChunk;
  T* grad = map.grad + b * map.rows * map.columns * job.channels + first;
  const T* f0 = job.f0 + b * job.f0_stride + first;
  for (int64_t cell = 0; cell < map.rows * map.columns; ++cell) {
    for (int64_t c = 0; c < count; ++c) grad[cell * job.channels + c] = T(0);
  }
  for (int64_t pixel = 0; pixel < job.pixels; ++pixel) {
    const Window<T> window = job.window(b, pixel, level);
    if (window.reach != Reach::kNear) continue;
    const T* grad_taps = kept + (pixel * job.level_count + level) * job.taps();
    const T* feature = f0 + pixel * job.channels;
    visit_taps(window, job.radius, map.rows, map.columns,
               [&](int64_t tap, int64_t cell) __attribute__((always_inline)) {
                 const T factor = grad_taps[tap];
                 T* target = grad + cell * job.channels;
                 for (int64_t c = 0; c < count; ++c) target[c] += factor * feature[c];
               });
  }
}

template <class T>
FLOWFUSE_INLINE void spread_tasks(const Lookup<T>& job, int64_t item, const T* kept, int64_t first, int64_t last) {
  const int64_t chunks = (job.channels + kChannelChunk - 1) / kChannelChunk;
  const int64_t item_stride = job.pixels * job.level_count * job.taps();
  for (int64_t task = first; task < last; ++task) {
    const int64_t b = task / (chunks * job.level_count);
    const int level = static_cast<int>(task / chunks % job.level_count);
    spread_to_f1(job, item + b, level, task % chunks, kept + b * item_stride);
  }
}

template <class T>
void run_backward(const Lookup<T>& job, const Tensor& like) {
  if (!job.on_demand) {
    parallel_for(0, job.batch * job.pixels, 16, [&](int64_t first, int64_t last) {
      // No tap gradients are kept with volumes.
      FLOWFUSE_VARIANTS(pixels_backward(job, 0, static_cast<T*>(nullptr), first, last))
    });
    return;
  }
  // Items are taken a group at a time: the workspace does not grow with the batch.
  const int64_t item_taps = std::max<int64_t>(1, job.pixels * job.level_count * job.taps());
  const int64_t group = std::min(job.batch, std::max<int64_t>(1, kWorkspace / (item_taps * int64_t{sizeof(T)})));
  Tensor workspace = allocate("correlation_lookup_backward", like, {group, item_taps}, like.scalar_type());
  T* kept = mutable_data<T>(workspace);
  const int64_t chunks = (job.channels + kChannelChunk - 1) / kChannelChunk;
  for (int64_t item = 0; item < job.batch; item += group) {
    const int64_t items = std::min(group, job.batch - item);
    parallel_for(0, items * job.pixels, 16, [&](int64_t first, int64_t last) {
      FLOWFUSE_VARIANTS(pixels_backward(job, item, kept, first, last))
    });
    parallel_for(0, items * job.level_count * chunks, 1, [&](int64_t first, int64_t last) {
      FLOWFUSE_VARIANTS(spread_tasks(job, item, static_cast<const T*>(kept), first, last))
    });
  }
}

template <class T>
Lookup<T> lookup_of(const Tensor& coords, size_t levels, int64_t radius) {
  Lookup<T> job{};
  job.level_count = static_cast<int>(levels);
  job.coords = data<double>(coords);
  job.batch = coords.size(0);
  job.pixels = coords.size(2) * coords.size(3);
  job.radius = static_cast<int>(radius);
  return job;
}

// Coordinates' gradient: as coords when asked for, else empty.
template <class T>
Tensor empty_coords_gradient(const char* op, const Tensor& like, const Tensor& coords, bool needed, Lookup<T>& job) {
  if (!needed) return allocate(op, like, {0}, like.scalar_type());
  Tensor grad = allocate(op, like, shape_of(coords), like.scalar_type());
  job.grad_coords = mutable_data<T>(grad);
  return grad;
}

template <class T>
void set_volumes(Lookup<T>& job, std::vector<Tensor>& volumes) {
  for (size_t level = 0; level < volumes.size(); ++level) {
    Tensor& volume = volumes[level];
    volume = torch::stable::contiguous(volume);
    const int64_t rows = volume.size(3), columns = volume.size(4);
    job.levels[level] = {data<T>(volume), nullptr, job.pixels * rows * columns, rows, columns};
  }
}

template <class T>
Tensor volume_lookup_typed(std::vector<Tensor>& volumes, const Tensor& coords, int64_t radius) {
  Lookup<T> job = lookup_of<T>(coords, volumes.size(), radius);
  set_volumes(job, volumes);
  Tensor output = allocate("volume_lookup", coords, windows_shape(coords, volumes.size(), radius),
                           volumes[0].scalar_type());
  job.output = mutable_data<T>(output);
  run_lookup(job);
  return output;
}

Tensor volume_lookup(std::vector<Tensor> volumes, Tensor coords, int64_t radius) {
  check_volume_lookup(volumes, coords, radius);
  const Tensor exact = converted(coords, ScalarType::Double);
  const bool wide = volumes[0].scalar_type() == ScalarType::Double;
  return wide ? volume_lookup_typed<double>(volumes, exact, radius)
              : volume_lookup_typed<float>(volumes, exact, radius);
}

template <class T>
std::tuple<std::vector<Tensor>, Tensor> volume_lookup_backward_typed(const Tensor& grad, std::vector<Tensor>& volumes,
                                                                     const Tensor& coords, int64_t radius,
                                                                     bool coords_needed) {
  const char* op = "volume_lookup_backward";
  Lookup<T> job = lookup_of<T>(coords, volumes.size(), radius);
  set_volumes(job, volumes);
  job.grad = data<T>(grad);
  std::vector<Tensor> grads;
  for (size_t level = 0; level < volumes.size(); ++level) {
    grads.push_back(allocate(op, volumes[level], shape_of(volumes[level]), grad.scalar_type(),
                             MemoryFormat::Contiguous, kOnDemandAdvice));
    job.levels[level].grad = mutable_data<T>(grads.back());
  }
  Tensor grad_coords = empty_coords_gradient(op, grad, coords, coords_needed, job);
  run_backward(job, grad);
  return {grads, grad_coords};
}

std::tuple<std::vector<Tensor>, Tensor> volume_lookup_backward(Tensor grad, std::vector<Tensor> volumes,
                                                               Tensor coords, int64_t radius, bool coords_needed) {
  check_volume_lookup(volumes, coords, radius);
  const ScalarType dtype = volumes[0].scalar_type();
  check_gradient("volume_lookup_backward", grad, windows_shape(coords, volumes.size(), radius), dtype, "coords",
                 coords);
  const Tensor exact = converted(coords, ScalarType::Double);
  const Tensor g = torch::stable::contiguous(grad);
  const auto backward =
      dtype == ScalarType::Double ? volume_lookup_backward_typed<double> : volume_lookup_backward_typed<float>;
  const auto [grads, grad_coords] = backward(g, volumes, exact, radius, coords_needed);
  return {grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

// Packed maps, held while their pointers are in use.
template <class T>
std::vector<Features> set_features(Lookup<T>& job, const Tensor& f0, const std::vector<Tensor>& f1_levels) {
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  std::vector<Features> held{packed(f0, dtype, MemoryFormat::ChannelsLast)};
  job.on_demand = true;
  job.channels = f0.size(1);
  job.scale = T(1) / std::sqrt(static_cast<T>(job.channels));
  job.f0 = data<T>(held[0].tensor);
  job.f0_stride = held[0].batch_stride;
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    held.push_back(packed(f1_levels[level], dtype, MemoryFormat::ChannelsLast));
    const Features& f1 = held.back();
    job.levels[level] = {data<T>(f1.tensor), nullptr, f1.batch_stride, f1.rows, f1.columns};
  }
  return held;
}

template <class T>
Tensor correlation_lookup_typed(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords,
                                int64_t radius) {
  Lookup<T> job = lookup_of<T>(coords, f1_levels.size(), radius);
  const std::vector<Features> held = set_features(job, f0, f1_levels);
  Tensor output = allocate("correlation_lookup", f0, windows_shape(coords, f1_levels.size(), radius),
                           sum_dtype(f0.scalar_type()));
  job.output = mutable_data<T>(output);
  if (output.numel() > 0) run_lookup(job);
  return output;
}

Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius) {
  check_correlation_lookup(f0, f1_levels, coords, radius);
  const Tensor exact = converted(coords, ScalarType::Double);
  return f0.scalar_type() == ScalarType::Double ? correlation_lookup_typed<double>(f0, f1_levels, exact, radius)
                                                : correlation_lookup_typed<float>(f0, f1_levels, exact, radius);
}

template <class T>
std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward_typed(
    const Tensor& grad, const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords,
    int64_t radius, bool coords_needed) {
  const char* op = "correlation_lookup_backward";
  Lookup<T> job = lookup_of<T>(coords, f1_levels.size(), radius);
  const std::vector<Features> held = set_features(job, f0, f1_levels);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  job.grad = data<T>(grad);
  Tensor grad_f0 = empty_channels_last(op, f0, dtype);
  job.grad_f0 = mutable_data<T>(grad_f0);
  std::vector<Tensor> grads;
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    grads.push_back(empty_channels_last(op, f1_levels[level], dtype));
    job.levels[level].grad = mutable_data<T>(grads.back());
  }
  Tensor grad_coords = empty_coords_gradient(op, grad, coords, coords_needed, job);
  run_backward(job, grad);
  for (size_t level = 0; level < grads.size(); ++level) {
    grads[level] = torch::stable::to(grads[level], f1_levels[level].scalar_type());
  }
  return {torch::stable::to(grad_f0, f0.scalar_type()), grads, grad_coords};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward(
    Tensor grad, Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool coords_needed) {
  check_correlation_lookup(f0, f1_levels, coords, radius);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  check_gradient("correlation_lookup_backward", grad, windows_shape(coords, f1_levels.size(), radius), dtype, "f0",
                 f0);
  const Tensor exact = converted(coords, ScalarType::Double);
  const Tensor g = torch::stable::contiguous(grad);
  const auto backward = dtype == ScalarType::Double ? correlation_lookup_backward_typed<double>
                                                    : correlation_lookup_backward_typed<float>;
  const auto [grad_f0, grads, grad_coords] = backward(g, f0, f1_levels, exact, radius, coords_needed);
  return {grad_f0, grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("volume_lookup", TORCH_BOX(&flowfuse::volume_lookup));
  m.impl("volume_lookup_backward", TORCH_BOX(&flowfuse::volume_lookup_backward));
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::correlation_lookup));
  m.impl("correlation_lookup_backward", TORCH_BOX(&flowfuse::correlation_lookup_backward));
}
