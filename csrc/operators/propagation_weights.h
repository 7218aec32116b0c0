// propagation_weights for every device: its check.
#pragma once

#include <cstdint>

#include "checks.h"
#include "neighbours.h"

namespace flowfuse {

inline void check_propagation_weights(const char* op, const Tensor& query_key, const Tensor& boundary,
                                      const Tensor& strength) {
  check_shape(op, "strength", strength, "[S, 2] with S in [1, 8]",
              strength.dim() == 2 && strength.size(0) >= 1 && strength.size(0) <= kMostSteps && strength.size(1) == 2);
  const int64_t parts = 2 * strength.size(0);
  check_shape(op, "query_key", query_key, "[B, 2 S D, h, w]",
              query_key.dim() == 4 && query_key.size(1) >= parts && query_key.size(1) % parts == 0);
  check_shape(op, "boundary", boundary, {query_key.size(0), 2, query_key.size(2), query_key.size(3)});
  check_dtype(op, "query_key", query_key, kFeatureDtypes);
  const ScalarType exact = sum_dtype(query_key.scalar_type());
  check_dtype(op, "boundary", boundary, {exact});
  check_dtype(op, "strength", strength, {exact});
  check_device(op, "boundary", boundary, "query_key", query_key);
  check_device(op, "strength", strength, "query_key", query_key);
}

// Shapes: query_key [B, 2, S, D, h, w], boundary [B, 2, h, w], strength [S, 2], weights [B, S, 9, h, w].
struct AttentionSizes {
  int64_t batch, steps, channels, height, width;

  FLOWFUSE_INLINE int64_t plane() const { return height * width; }
  FLOWFUSE_INLINE int64_t row(int64_t plane_index, int64_t y) const { return (plane_index * height + y) * width; }
  FLOWFUSE_INLINE int64_t query(int64_t b, int64_t s, int64_t c) const { return (2 * b * steps + s) * channels + c; }
  FLOWFUSE_INLINE int64_t key(int64_t b, int64_t s, int64_t c) const {
    return ((2 * b + 1) * steps + s) * channels + c;
  }
  FLOWFUSE_INLINE int64_t weight(int64_t b, int64_t s, int neighbour) const {
    return (b * steps + s) * kNeighbours + neighbour;
  }
};

inline AttentionSizes attention_sizes(const Tensor& query_key, const Tensor& strength) {
  const int64_t steps = strength.size(0);
  return {query_key.size(0), steps, query_key.size(1) / (2 * steps), query_key.size(2), query_key.size(3)};
}

}  // namespace flowfuse
