// What the look-ups in a volume and on demand share: where windows lie, and the gradient in their centres.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <vector>

#include "cuda/launch.cuh"
#include "windows.h"

namespace flowfuse::cuda {

// Windows of `levels` maps around the coordinates of a batch.
struct Lookup {
  const void* coords;  // [B, 2, pixels], double where `wide`, else float
  bool wide;
  int64_t items, pixels;
  int radius, levels;

  FLOWFUSE_INLINE int tap_side() const { return 2 * radius + 2; }  // taps along an axis
  FLOWFUSE_INLINE int tap_count() const { return tap_side() * tap_side(); }
  FLOWFUSE_INLINE int value_side() const { return 2 * radius + 1; }  // values along an axis
  FLOWFUSE_INLINE int value_count() const { return value_side() * value_side(); }

  template <class T>
  __device__ __forceinline__ Window<T> window(int64_t b, int64_t pixel, int level, int64_t rows,
                                              int64_t columns) const {
    const int64_t at = b * 2 * pixels + pixel;
    const double x = wide ? static_cast<const double*>(coords)[at] : static_cast<const float*>(coords)[at];
    const double y =
        wide ? static_cast<const double*>(coords)[at + pixels] : static_cast<const float*>(coords)[at + pixels];
    return window_at<T>(x, y, level, radius, rows, columns);
  }

  // First of the values of a window in [B, levels * window_size, pixels]; the others follow `pixels` apart.
  __device__ __forceinline__ int64_t values_at(int64_t b, int64_t pixel, int level) const {
    return (b * levels + level) * value_count() * pixels + pixel;
  }
};

// coords contiguous.
inline Lookup lookup_of(const Tensor& coords, size_t levels, int64_t radius) {
  Lookup params{};
  params.coords = coords.const_data_ptr();
  params.wide = coords.scalar_type() == ScalarType::Double;
  params.items = coords.size(0);
  params.pixels = coords.size(2) * coords.size(3);
  params.radius = static_cast<int>(radius);
  params.levels = static_cast<int>(levels);
  return params;
}

// Coordinates' gradient, summed in `dtype`: as coords when asked for, else empty.
inline Tensor empty_coords_gradient(const char* op, const Tensor& coords, bool needed, ScalarType dtype) {
  return allocate(op, coords, needed ? shape_of(coords) : std::vector<int64_t>{0}, dtype);
}

}  // namespace flowfuse::cuda
