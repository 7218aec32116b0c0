// Look-ups in a correlation volume, all levels in one launch. A block has some neighbouring pixels of an item and a
// level in hand and takes their windows through shared memory: taps are read along the map, results written along the
// pixels.
#include <cmath>
#include <tuple>
#include <vector>

#include "cuda/volume_patches.cuh"
#include "operators/volume_lookup.h"

namespace flowfuse::cuda {
namespace {

template <class T>
__global__ void __launch_bounds__(kThreads, 3) look_up_volume(VolumeLevels<T> params, T* __restrict__ output) {
  const int64_t patches = params.items * patches_of(params);
  const int size = params.value_side(), i = static_cast<int>(threadIdx.x);
  for (int64_t index = blockIdx.x; index < params.levels * patches; index += gridDim.x) {
    const Patch<T> patch = load_whole_patch(params, index % patches, static_cast<int>(index / patches));
    __syncthreads();
    read_taps(params, patch);
    __syncthreads();
    if (i < patch.count) {
      const Window<T> window = patch.windows[i];
      const Corners<T> corners = corners_of(window);
      T* out = output + params.values_at(patch.b, patch.begin + i, patch.level);
      for (int k = static_cast<int>(threadIdx.y); k < size * size; k += static_cast<int>(blockDim.y)) {
        out[k * params.pixels] = value_of(patch, window.reach, corners, i, k);
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
      const T* near = patch.column_at(i, k / size);
      add_centre_gradient(values[k * params.pixels], window, near, near + patch.side, k % size, gx, gy);
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
  visit_patch(patch, [&](int i, int dx, int dy) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, params.radius, map.rows, map.columns);
    if (!contains(range, dx, dy)) return;
    map.grad[slice_of(params, patch, i) + cell_of(window, map.columns, dx, dy)] = patch.column_at(i, dx)[dy];
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
      const Patch<T> patch = load_whole_patch(params, index % patches, level);
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
  const int taps = params.tap_count();
  const auto bytes = [&](int pixels) { return patch_bytes<T>(pixels, taps) + 2 * kThreads * sizeof(T); };
  int pixels = kMostPixels;  // a power of two, so that a block has kThreads threads
  while (pixels > 1 && bytes(pixels) > kSharedLimit) pixels /= 2;
  const int64_t patches = levels * params.items * ((params.pixels + pixels - 1) / pixels);
  return {blocks_for(patches, 1), dim3(pixels, kThreads / pixels), bytes(pixels)};
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
