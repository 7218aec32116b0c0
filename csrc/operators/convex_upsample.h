// convex_upsample for every device: its check.
#pragma once

#include <cstdint>

#include "checks.h"

namespace flowfuse {

inline void check_convex_upsample(const char* op, const Tensor& field, const Tensor& mask, int64_t factor) {
  check_range(op, "factor", factor, 1, 64);
  check_shape(op, "field", field, "[B, D, h, w]", field.dim() == 4);
  check_shape(op, "mask", mask, {field.size(0), 9 * factor * factor, field.size(2), field.size(3)});
  check_dtype(op, "field", field, kCoordinateDtypes);
  check_dtype(op, "mask", mask, kFeatureDtypes);
  check_device(op, "mask", mask, "field", field);
}

}  // namespace flowfuse
