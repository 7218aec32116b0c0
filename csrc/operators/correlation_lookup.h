// correlation_lookup for every device: its check.
#pragma once

#include <cstdint>
#include <vector>

#include "operators/correlation_volume.h"
#include "windows.h"

namespace flowfuse {

inline void check_correlation_lookup(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels,
                                     const Tensor& coords, int64_t radius) {
  check_correlation_volume(op, f0, f1_levels);
  check_window(op, coords, radius);
  check_shape(op, "coords", coords, {f0.size(0), 2, f0.size(2), f0.size(3)});
  check_device(op, "coords", coords, "f0", f0);
}

}  // namespace flowfuse
