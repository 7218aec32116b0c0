// volume_lookup for every device: its check.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "windows.h"

namespace flowfuse {

inline void check_volume_lookup(const char* op, const std::vector<Tensor>& volumes, const Tensor& coords,
                                int64_t radius) {
  check_level_count(op, volumes.size());
  check_window(op, coords, radius);
  const int64_t batch = coords.size(0), height = coords.size(2), width = coords.size(3);
  for (size_t level = 0; level < volumes.size(); ++level) {
    const Tensor& volume = volumes[level];
    const ArgumentName name{"volumes", level};
    if (volume.dim() != 5 || volume.size(0) != batch || volume.size(1) != height || volume.size(2) != width) {
      refuse_shape(
          op, name, volume,
          "[" + std::to_string(batch) + ", " + std::to_string(height) + ", " + std::to_string(width) + ", H_l, W_l]");
    }
    check_dtype(op, name, volume, kCoordinateDtypes);
    if (volume.scalar_type() != volumes[0].scalar_type()) {
      refuse(op, name, " must be of the dtype of level 0, got ", dtype_name(volume.scalar_type()));
    }
    check_device(op, name, volume, "coords", coords);
  }
}

}  // namespace flowfuse
