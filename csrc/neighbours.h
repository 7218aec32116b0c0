// The 3 x 3 neighbours, row-major, that propagation_weights and propagate visit at growing distances: step s goes 2^s
// pixels.
#pragma once

#include <cstdint>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

constexpr int kNeighbours = 9;
constexpr int kCentre = 4;
constexpr int64_t kMostSteps = 8;

FLOWFUSE_INLINE int64_t row_shift(int neighbour) { return neighbour / 3 - 1; }
FLOWFUSE_INLINE int64_t column_shift(int neighbour) { return neighbour % 3 - 1; }

// Whether the pixel that lies `distance` steps of a neighbour's way from (y, x) is inside the image.
FLOWFUSE_INLINE bool reaches(int64_t y, int64_t x, int neighbour, int64_t distance, int64_t height, int64_t width) {
  const int64_t row = y + distance * row_shift(neighbour), column = x + distance * column_shift(neighbour);
  return row >= 0 && row < height && column >= 0 && column < width;
}

struct Columns {
  int64_t begin, end;
};

// Columns x of [0, width) of which x + shift is one too.
FLOWFUSE_INLINE Columns columns_within(int64_t shift, int64_t width) {
  if (shift >= width || -shift >= width) return {width, width};
  return {shift < 0 ? -shift : 0, shift > 0 ? width - shift : width};
}

}  // namespace flowfuse
