// correlation_volume for every device: the check of two feature maps, one of them in levels.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "windows.h"

namespace flowfuse {

inline void check_correlation_volume(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels) {
  check_shape(op, "f0", f0, "[B, C, H, W]", f0.dim() == 4);
  check_dtype(op, "f0", f0, kFeatureDtypes);
  if (f0.size(1) < 1) refuse(op, "f0 must have at least one channel, got ", size_list(shape_of(f0)));
  check_level_count(op, f1_levels.size());
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    const Tensor& f1 = f1_levels[level];
    const ArgumentName name{"f1", level};
    if (f1.dim() != 4 || f1.size(0) != f0.size(0) || f1.size(1) != f0.size(1)) {
      refuse_shape(op, name, f1, "[" + std::to_string(f0.size(0)) + ", " + std::to_string(f0.size(1)) + ", H_l, W_l]");
    }
    check_dtype(op, name, f1, kFeatureDtypes);
    if (sum_dtype(f0.scalar_type()) != sum_dtype(f1.scalar_type())) {
      refuse(op, "f0 and ", name, " must both be float64 or neither");
    }
    check_device(op, name, f1, "f0", f0);
  }
}

}  // namespace flowfuse
