// Windows of a stored volume: a block has some neighbouring pixels of an item and a level in hand, and reads their taps
// along the map into shared memory.
#pragma once

#include <cmath>
#include <vector>

#include "cuda/launch.cuh"
#include "cuda/lookup.cuh"

namespace flowfuse::cuda {

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

// The pixels that a block has in hand, blockDim.x at most, and its shared memory. Of their windows it has the taps in
// some neighbouring columns.
template <class T>
struct Patch {
  int64_t b, begin;     // item and first pixel
  int count, level;     // of pixels; and the level that its windows lie on
  int column, columns;  // the first one, and how many
  int side, stride;     // taps of a column, and from pixel to pixel
  Window<T>* windows;   // [blockDim.x]
  T* taps;              // [blockDim.x][stride]
  T* parts;             // [kThreads][2], of gradients

  __device__ __forceinline__ T* column_at(int i, int dx) const { return taps + i * stride + (dx - column) * side; }
};

// Taps of a pixel lie an odd number apart: those of all pixels are then read from different banks.
FLOWFUSE_INLINE int stride_of(int taps) { return taps + 1; }

template <class T>
size_t patch_bytes(int pixels, int taps) {
  return pixels * (sizeof(Window<T>) + stride_of(taps) * sizeof(T));
}

__device__ __forceinline__ int64_t patches_of(const Lookup& params) {  // of an item
  return (params.pixels + blockDim.x - 1) / blockDim.x;
}

__device__ __forceinline__ int thread_number() { return static_cast<int>(threadIdx.y * blockDim.x + threadIdx.x); }

// Takes patch number `index` of the batch and finds its windows on a level, of which it will have some columns of taps.
template <class T>
__device__ __forceinline__ Patch<T> load_patch(const VolumeLevels<T>& params, int64_t index, int level, int column,
                                               int columns, void* memory) {
  Patch<T> patch;
  patch.level = level;
  const int64_t patches = patches_of(params);
  patch.b = index / patches;
  patch.begin = index % patches * blockDim.x;
  const int64_t left = params.pixels - patch.begin;
  patch.count = left < blockDim.x ? static_cast<int>(left) : static_cast<int>(blockDim.x);
  patch.column = column;
  patch.columns = columns;
  patch.side = params.tap_side();
  patch.stride = stride_of(columns * patch.side);
  patch.windows = static_cast<Window<T>*>(memory);
  patch.taps = reinterpret_cast<T*>(patch.windows + blockDim.x);
  patch.parts = patch.taps + blockDim.x * patch.stride;
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
__device__ __forceinline__ void visit_patch(const Patch<T>& patch, const Visit& visit) {
  const int side = patch.side, columns = patch.columns;
  for (int index = thread_number(); index < patch.count * side * columns; index += kThreads) {
    const int row = index / columns;
    visit(row / side, patch.column + index % columns, row % side);
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

// Whole windows of a patch that has all of the shared memory.
template <class T>
__device__ __forceinline__ Patch<T> load_whole_patch(const VolumeLevels<T>& params, int64_t index, int level) {
  return load_patch(params, index, level, 0, params.tap_side(), shared_memory<Window<T>>());
}

// Values of the taps of a patch; outside the map they are 0.
template <class T>
__device__ __forceinline__ void read_taps(const VolumeLevels<T>& params, const Patch<T>& patch) {
  const VolumeLevel<T>& map = params.maps[patch.level];
  visit_patch(patch, [&](int i, int dx, int dy) {
    const Window<T>& window = patch.windows[i];
    const TapRange range = taps_inside(window, params.radius, map.rows, map.columns);
    T value = 0;
    if (contains(range, dx, dy)) {
      value = map.values[slice_of(params, patch, i) + cell_of(window, map.columns, dx, dy)];
    }
    patch.column_at(i, dx)[dy] = value;
  });
}

// Value k (x slow) of a window of a patch on its level.
template <class T>
__device__ __forceinline__ T value_of(const Patch<T>& patch, Reach reach, const Corners<T>& corners, int i, int k) {
  if (reach == Reach::kMissing) return static_cast<T>(NAN);
  if (reach != Reach::kNear) return T(0);
  const int size = patch.side - 1;
  const T* near = patch.column_at(i, k / size);
  return combined_value(corners, near, near + patch.side, k % size);
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

inline std::vector<Tensor> contiguous(const std::vector<Tensor>& tensors) {
  std::vector<Tensor> result;
  for (const Tensor& tensor : tensors) result.push_back(converted(tensor, tensor.scalar_type()));
  return result;
}

}  // namespace flowfuse::cuda
