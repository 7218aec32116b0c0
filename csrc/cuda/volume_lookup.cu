// Look-ups in a correlation volume, all levels in one launch. A block has some neighbouring pixels of an item and a
// level in hand and takes their windows through shared memory: taps are read along the map, results written along the
// pixels.
#include <cmath>
#include <tuple>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lookup.cuh"
#include "operators/volume_lookup.h"

namespace flowfuse::cuda {
namespace {

constexpr int kMostPixels = 32;  // of a block

// A level of a volume: values and their gradient [B, pixels, rows, columns].
template <class T>
struct VolumeLevel {
  const T* values;
  T* grad;
  int64_t rows, columns;
};

template <class T>
struct VolumeLevels : Lookup {
  VolumeLevel<T> maps[kMaxLevels];
};

// The pixels that a block has in hand, blockDim.x at most, and its shared memory.
template <class T>
struct Patch {
  int64_t b, begin;    // item and first pixel
  int count, level;    // of pixels; and the level that its windows lie on
  Window<T>* windows;  // [blockDim.x]
  T* parts;            // [kThreads][2]
  T* taps;             // [blockDim.x][stride]
  int stride;
};

// Taps of a pixel lie an odd number apart: those of all pixels are then read from different banks.
FLOWFUSE_INLINE int stride_of(int taps) { return taps + 1; }

template <class T>
size_t patch_bytes(int pixels, int taps) {
  return pixels * (sizeof(Window<T>) + stride_of(taps) * sizeof(T)) + 2 * kThreads * sizeof(T);
}

__device__ __forceinline__ int64_t patches_of(const Lookup& params) {  // of an item
  return (params.pixels + blockDim.x - 1) / blockDim.x;
}

__device__ __forceinline__ int thread_number() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }

// Takes patch number `index` of the batch and finds its windows on a level.
template <class T>
__device__ __forceinline__ Patch<T> load_patch(const VolumeLevels<T>& params, int64_t index, int level) {
  Patch<T> patch;
  patch.level = level;
  const int64_t patches = patches_of(params);
  patch.b = index / patches;
  patch.begin = index % patches * blockDim.x;
  const int64_t left = params.pixels - patch.begin;
  patch.count = left < blockDim.x ? static_cast<int>(left) : static_cast<int>(blockDim.x);
  patch.windows = shared_memory<Window<T>>();
  patch.parts = reinterpret_cast<T*>(patch.windows + blockDim.x);
  patch.taps = patch.parts + 2 * kThreads;
  patch.stride = stride_of(params.tap_count());
  const int i = thread_number();
  if (i < patch.count) {
    const VolumeLevel<T>& map = params.maps[level];
    patch.windows[i] = params.template window<T>(patch.b, patch.begin + i, level, map.rows, map.columns);
  }
  return patch;
}

// Calls visit(pixel of the patch, dx, dy) for the taps of all its pixels, shared among the threads of the block;
// neighbouring threads have neighbouring dx.
template <class T, class Visit>
__device__ __forceinline__ void visit_patch(const VolumeLevels<T>& params, const Patch<T>& patch, const Visit& visit) {
  const int side = params.tap_side();
  for (int index = thread_number(); index < patch.count * side * side; index += kThreads) {
    const int row = index / side;
    visit(row / side, index % side, row % side);
  }
}

__device__ __forceinline__ bool contains(const TapRange& range, int dx, int dy) {
  return dx >= range.x0 && dx < range.x1 && dy >= range.y0 && dy < range.y1;
}

// Cell (as the map lies in memory) of a tap inside the map.
template <class T>
__device__ __forceinline__ int64_t cell_of(const Window<T>& window, int64_t columns, int dx, int dy) {
  return (window.y + dy) * columns + window.x + dx;
}

template <class T>
__device__ __forceinline__ int64_t slice_of(const VolumeLevels<T>& params, const Patch<T>& patch, int i) {
  const VolumeLevel<T>& map = params.maps[patch.level];
  return (patch.b * params.pixels + patch.begin + i) * map.rows * map.columns;
}

// Values of the taps of a patch; outside the map they are 0.
template <class T>
__device__ __forceinline__ void read_taps(const VolumeLevels<T>& params, const Patch<T>& patch) {
  const VolumeLevel<T>& map = params.maps[patch.level];
  visit_patch(params, patch, [&](int i, int dx, int dy) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, params.radius, map.rows, map.columns);
    T value = 0;
    if (contains(range, dx, dy)) {
      value = map.values[slice_of(params, patch, i) + cell_of(window, map.columns, dx, dy)];
    }
    patch.taps[i * patch.stride + dx * params.tap_side() + dy] = value;
  });
}

template <class T>
__global__ void __launch_bounds__(kThreads, 3) look_up_volume(VolumeLevels<T> params, T* __restrict__ output) {
  const int64_t patches = params.items * patches_of(params);
  const int size = params.value_side(), i = static_cast<int>(threadIdx.x);
  for (int64_t index = blockIdx.x; index < params.levels * patches; index += gridDim.x) {
    const Patch<T> patch = load_patch(params, index % patches, static_cast<int>(index / patches));
    __syncthreads();
    read_taps(params, patch);
    __syncthreads();
    if (i < patch.count) {
      const Window<T> window = patch.windows[i];
      const Corners<T> corners = corners_of(window);
      T* out = output + params.values_at(patch.b, patch.begin + i, patch.level);
      for (int k = static_cast<int>(threadIdx.y); k < size * size; k += static_cast<int>(blockDim.y)) {
        const T* near = patch.taps + i * patch.stride + k / size * params.tap_side();
        T value = 0;
        if (window.reach == Reach::kNear) value = combined_value(corners, near, near + params.tap_side(), k % size);
        if (window.reach == Reach::kMissing) value = static_cast<T>(NAN);
        out[k * params.pixels] = value;
      }
    }
    __syncthreads();  // the patch has been read
  }
}

// Gradient in the coordinates, added to what earlier levels left: each thread sums some values of the window of a
// pixel, then one of them the parts in their order. The taps have been read into the patch.
template <class T>
__device__ __forceinline__ void add_coords_gradient(const VolumeLevels<T>& params, const Patch<T>& patch, const T* grad,
                                                    T* grad_coords) {
  const int size = params.value_side(), level = patch.level, i = static_cast<int>(threadIdx.x);
  const bool there = i < patch.count;
  T gx = 0, gy = 0;
  if (there && patch.windows[i].reach == Reach::kNear) {
    const Window<T> window = patch.windows[i];
    const T* values = grad + params.values_at(patch.b, patch.begin + i, level);
    for (int k = static_cast<int>(threadIdx.y); k < size * size; k += static_cast<int>(blockDim.y)) {
      const T* near = patch.taps + i * patch.stride + k / size * params.tap_side();
      add_centre_gradient(values[k * params.pixels], window, near, near + params.tap_side(), k % size, gx, gy);
    }
  }
  patch.parts[2 * thread_number()] = gx;
  patch.parts[2 * thread_number() + 1] = gy;
  __syncthreads();
  if (there && threadIdx.y < 2) {
    T sum = 0;
    for (unsigned part = 0; part < blockDim.y; ++part) {
      sum += patch.parts[2 * (part * blockDim.x + threadIdx.x) + threadIdx.y];
    }
    sum /= static_cast<T>(int64_t{1} << level);
    T& target = grad_coords[(patch.b * 2 + threadIdx.y) * params.pixels + patch.begin + i];
    target = level == 0 ? sum : target + sum;
  }
}

// Gradients of the taps of a patch -> gradient of the volume, which was cleared.
template <class T>
__device__ __forceinline__ void pass_on(const VolumeLevels<T>& params, const Patch<T>& patch) {
  const VolumeLevel<T>& map = params.maps[patch.level];
  visit_patch(params, patch, [&](int i, int dx, int dy) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, params.radius, map.rows, map.columns);
    if (!contains(range, dx, dy)) return;
    map.grad[slice_of(params, patch, i) + cell_of(window, map.columns, dx, dy)] =
        patch.taps[i * patch.stride + dx * params.tap_side() + dy];
  });
}

// Gradients that belong to a pixel: its slice of the volume, and its coordinates (null: not asked for), whose sum over
// the levels one block makes.
template <class T>
__global__ void __launch_bounds__(kThreads, 3)
    pixel_gradients(VolumeLevels<T> params, const T* __restrict__ grad, T* __restrict__ grad_coords) {
  const int64_t patches = params.items * patches_of(params);
  const int side = params.tap_side(), i = static_cast<int>(threadIdx.x);
  const int together = grad_coords == nullptr ? 1 : params.levels;  // levels of a block
  for (int64_t index = blockIdx.x; index < params.levels / together * patches; index += gridDim.x) {
    const int first = static_cast<int>(index / patches);
    for (int level = first; level < first + together; ++level) {
      const Patch<T> patch = load_patch(params, index % patches, level);
      __syncthreads();
      if (grad_coords != nullptr) {
        read_taps(params, patch);
        __syncthreads();
        add_coords_gradient(params, patch, grad, grad_coords);  // its barrier: the taps have been read
      }
      if (i < patch.count) {
        const bool near = patch.windows[i].reach == Reach::kNear;
        const Corners<T> corners = corners_of(patch.windows[i]);
        const T* values = grad + params.values_at(patch.b, patch.begin + i, level);
        for (int k = static_cast<int>(threadIdx.y); k < side * side; k += static_cast<int>(blockDim.y)) {
          patch.taps[i * patch.stride + k] =
              near ? tap_gradient(values, params.pixels, corners, params.radius, k / side, k % side) : T(0);
        }
      }
      __syncthreads();
      pass_on(params, patch);
      __syncthreads();  // the patch has been read
    }
  }
}

// How a kernel that takes patches is launched: as many pixels a block as fit in shared memory.
struct PatchLaunch {
  unsigned grid;
  dim3 block;
  size_t shared_bytes;
};

template <class T>
PatchLaunch patch_launch(const Lookup& params, int levels) {
  const int side = 2 * params.radius + 2;
  int pixels = kMostPixels;  // a power of two, so that a block has kThreads threads
  while (pixels > 1 && patch_bytes<T>(pixels, side * side) > kSharedLimit) pixels /= 2;
  const int64_t patches = levels * params.items * ((params.pixels + pixels - 1) / pixels);
  return {blocks_for(patches, 1), dim3(pixels, kThreads / pixels), patch_bytes<T>(pixels, side * side)};
}

// The volumes, contiguous; and, in the backward pass, their gradients.
template <class T>
VolumeLevels<T> levels_of(const Tensor& points, const std::vector<Tensor>& volumes, int64_t radius,
                          const std::vector<Tensor>* grads) {
  VolumeLevels<T> params{};
  static_cast<Lookup&>(params) = lookup_of(points, volumes.size(), radius);
  for (size_t level = 0; level < volumes.size(); ++level) {
    params.maps[level] = {data<T>(volumes[level]), grads == nullptr ? nullptr : mutable_data<T>((*grads)[level]),
                          volumes[level].size(3), volumes[level].size(4)};
  }
  return params;
}

std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(converted(tensor, tensor.scalar_type()));
  return result;
}

Tensor volume_lookup(std::vector<Tensor> volumes, Tensor coords, int64_t radius) {
  const char* op = "volume_lookup";
  check_volume_lookup(op, volumes, coords, radius);
  const DeviceCall call(op, coords);
  const ScalarType dtype = volumes[0].scalar_type();
  const Tensor output = allocate(op, coords, windows_shape(coords, volumes.size(), radius), dtype);
  const Tensor points = converted(coords, coords.scalar_type());
  const std::vector<Tensor> maps = contiguous(volumes);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const VolumeLevels<T> params = levels_of<T>(points, maps, radius, nullptr);
    const PatchLaunch launch = patch_launch<T>(params, params.levels);
    call.launch(look_up_volume<T>, launch.grid, launch.block, launch.shared_bytes, params, mutable_data<T>(output));
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  return output;
}

std::tuple<std::vector<Tensor>, Tensor> volume_lookup_backward(Tensor grad, std::vector<Tensor> volumes, Tensor coords,
                                                               int64_t radius, bool coords_needed) {
  const char* op = "volume_lookup_backward";
  check_volume_lookup(op, volumes, coords, radius);
  const ScalarType dtype = volumes[0].scalar_type();
  check_gradient(op, grad, windows_shape(coords, volumes.size(), radius), dtype, "coords", coords);
  const DeviceCall call(op, coords);
  const Tensor points = converted(coords, coords.scalar_type()), g = converted(grad, dtype);
  const Tensor grad_coords = empty_coords_gradient(op, coords, coords_needed, dtype);
  const std::vector<Tensor> maps = contiguous(volumes);
  std::vector<Tensor> grads;
  for (const Tensor& map : maps) {
    grads.push_back(allocate(op, map, shape_of(map), dtype, MemoryFormat::Contiguous, kOnDemandAdvice));
    call.clear(grads.back());
  }
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const VolumeLevels<T> params = levels_of<T>(points, maps, radius, &grads);
    T* target = grad_coords.numel() > 0 ? mutable_data<T>(grad_coords) : nullptr;
    const PatchLaunch launch = patch_launch<T>(params, target == nullptr ? params.levels : 1);
    call.launch(pixel_gradients<T>, launch.grid, launch.block, launch.shared_bytes, params, data<T>(g), target);
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  return {grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("volume_lookup", TORCH_BOX(&flowfuse::cuda::volume_lookup));
  m.impl("volume_lookup_backward", TORCH_BOX(&flowfuse::cuda::volume_lookup_backward));
}
