// propagate for every device: its check.
#pragma once

#include <cstdint>

#include "checks.h"
#include "neighbours.h"

namespace flowfuse {

inline void check_propagate(const char* op, const Tensor& values, const Tensor& weights) {
  check_shape(op, "values", values, "[B, C, h, w]", values.dim() == 4);
  check_shape(op, "weights", weights, "[B, S, 9, h, w] with the B, h, w of values and S in [1, 8]",
              weights.dim() == 5 && weights.size(0) == values.size(0) && weights.size(1) >= 1 &&
                  weights.size(1) <= kMostSteps && weights.size(2) == kNeighbours &&
                  weights.size(3) == values.size(2) && weights.size(4) == values.size(3));
  check_dtype(op, "values", values, kFeatureDtypes);
  check_dtype(op, "weights", weights, {sum_dtype(values.scalar_type())});
  check_device(op, "weights", weights, "values", values);
}

// Shapes: values [B, C, h, w], weights [B, S, 9, h, w].
struct PropagationSizes {
  int64_t batch, channels, steps, height, width;

  FLOWFUSE_INLINE int64_t count() const { return batch * channels * height * width; }
  FLOWFUSE_INLINE int64_t value(int64_t b, int64_t c, int64_t y) const {
    return ((b * channels + c) * height + y) * width;
  }
  FLOWFUSE_INLINE int64_t weight(int64_t b, int64_t s, int neighbour, int64_t y) const {
    return (((b * steps + s) * kNeighbours + neighbour) * height + y) * width;
  }
};

inline PropagationSizes propagation_sizes(const Tensor& values, const Tensor& weights) {
  return {values.size(0), values.size(1), weights.size(1), values.size(2), values.size(3)};
}

}  // namespace flowfuse
