// read_volume and read_correlation for every device: their checks.
#pragma once

#include <cstdint>
#include <vector>

#include "operators/correlation_lookup.h"
#include "operators/read_windows.h"
#include "operators/volume_lookup.h"

namespace flowfuse {

// What is said of windows around coords: `name` is the argument `source` that they are taken from.
inline WindowSizes looked_up_sizes(const Tensor& coords, size_t levels, int64_t radius, ScalarType dtype,
                                   const char* name, const Tensor& source) {
  const std::vector<int64_t> shape = windows_shape(coords, levels, radius);
  return {shape[0], shape[1], shape[2], shape[3], dtype, name, source};
}

inline WindowSizes check_read_volume(const char* op, const std::vector<Tensor>& volumes, const Tensor& coords,
                                     int64_t radius, const ReadingArguments& given) {
  check_volume_lookup(op, volumes, coords, radius);
  const WindowSizes sizes =
      looked_up_sizes(coords, volumes.size(), radius, volumes[0].scalar_type(), "volumes", volumes[0]);
  check_reading(op, sizes, given);
  return sizes;
}

inline WindowSizes check_read_correlation(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels,
                                          const Tensor& coords, int64_t radius, const ReadingArguments& given) {
  check_correlation_lookup(op, f0, f1_levels, coords, radius);
  const WindowSizes sizes = looked_up_sizes(coords, f1_levels.size(), radius, sum_dtype(f0.scalar_type()), "f0", f0);
  check_reading(op, sizes, given);
  return sizes;
}

}  // namespace flowfuse
