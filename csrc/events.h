// Events as voxelize and warp_events read them on every device, and the checks of them.
#pragma once

#include <cstdint>
#include <utility>
#include <vector>

#include "checks.h"
#include "portable.h"

namespace flowfuse {

constexpr int64_t kMaxSide = int64_t{1} << 20;      // height or width of a sensor
constexpr int64_t kMaxDuration = int64_t{1} << 40;  // of a time interval, microseconds

// Dtypes and shapes of a batch of events; `times` are per batch item. No value is read.
inline void check_events(const char* op, const Tensor& x, const Tensor& y, const Tensor& t, const Tensor& p,
                         const Tensor& offsets, std::initializer_list<std::pair<const char*, const Tensor*>> times) {
  check_shape(op, "t", t, "[N]", t.dim() == 1);
  const std::pair<const char*, const Tensor*> columns[] = {{"x", &x}, {"y", &y}, {"p", &p}};
  for (const auto& [name, tensor] : columns) check_shape(op, name, *tensor, {t.size(0)});
  check_shape(op, "offsets", offsets, "[B + 1], B at least 1", offsets.dim() == 1 && offsets.size(0) >= 2);
  check_dtype(op, "x", x,
              {ScalarType::Byte, ScalarType::Short, ScalarType::UInt16, ScalarType::Int, ScalarType::Long,
               ScalarType::Float, ScalarType::Double});
  check_dtype(op, "y", y, {x.scalar_type()});
  check_dtype(
      op, "p", p,
      {ScalarType::Byte, ScalarType::Bool, ScalarType::Char, ScalarType::Short, ScalarType::Int, ScalarType::Long});
  check_dtype(op, "t", t, {ScalarType::Long});
  check_dtype(op, "offsets", offsets, {ScalarType::Long});
  for (const auto& [name, tensor] : times) check_dtype(op, name, *tensor, {ScalarType::Long});
  for (const auto& [name, tensor] : times) check_shape(op, name, *tensor, {offsets.size(0) - 1});
  for (const auto& [name, tensor] : columns) check_device(op, name, *tensor, "x", x);
  check_device(op, "t", t, "x", x);
  check_device(op, "offsets", offsets, "x", x);
  for (const auto& [name, tensor] : times) check_device(op, name, *tensor, "x", x);
}

// The values behind check_events, for devices whose memory the host can read.
inline void check_event_values(const char* op, int64_t count, const int64_t* offsets, const int64_t* t0,
                               const int64_t* t1, int64_t items) {
  bool ordered = offsets[0] >= 0 && offsets[items] <= count;
  for (int64_t b = 0; b < items; ++b) ordered = ordered && offsets[b] <= offsets[b + 1];
  if (!ordered) refuse(op, "offsets must not decrease and must lie within [0, ", count, "]");
  for (int64_t b = 0; b < items; ++b) {
    const uint64_t duration = static_cast<uint64_t>(t1[b]) - static_cast<uint64_t>(t0[b]);
    const bool forward = t0[b] < t1[b];
    if (forward && duration <= static_cast<uint64_t>(kMaxDuration)) continue;
    refuse(op, forward ? "t1 - t0 must be at most 2^40 microseconds" : "t1 must be later than t0", ", got t0 = ", t0[b],
           ", t1 = ", t1[b], " in item ", b);
  }
}

// Columns of N events.
struct Events {
  const void *x, *y, *p;
  const int64_t* t;
  ScalarType position_dtype, polarity_dtype;
};

template <class From, class To>
FLOWFUSE_INLINE To element_as(const void* column, int64_t index) {
  return static_cast<To>(static_cast<const From*>(column)[index]);
}

template <class To>
FLOWFUSE_INLINE To position_at(const void* column, ScalarType dtype, int64_t index) {
  switch (dtype) {
    case ScalarType::Byte: return element_as<uint8_t, To>(column, index);
    case ScalarType::Short: return element_as<int16_t, To>(column, index);
    case ScalarType::UInt16: return element_as<uint16_t, To>(column, index);
    case ScalarType::Int: return element_as<int32_t, To>(column, index);
    case ScalarType::Float: return element_as<float, To>(column, index);
    case ScalarType::Double: return element_as<double, To>(column, index);
    default: return element_as<int64_t, To>(column, index);
  }
}

// 1 for a positive event, -1 for a negative one: without a branch, which no processor could predict.
FLOWFUSE_INLINE int64_t sign_at(const Events& events, int64_t index) {
  int64_t polarity = 0;
  switch (events.polarity_dtype) {
    case ScalarType::Byte:
    case ScalarType::Bool: polarity = element_as<uint8_t, int64_t>(events.p, index); break;
    case ScalarType::Char: polarity = element_as<int8_t, int64_t>(events.p, index); break;
    case ScalarType::Short: polarity = element_as<int16_t, int64_t>(events.p, index); break;
    case ScalarType::Int: polarity = element_as<int32_t, int64_t>(events.p, index); break;
    default: polarity = element_as<int64_t, int64_t>(events.p, index);
  }
  return 2 * static_cast<int64_t>(polarity > 0) - 1;
}

// Item b among [first, last) with offsets[b] <= index < offsets[b + 1], or -1. Both inequalities hold for the pair
// (first, last) at every step, so offsets out of order give such an item too, or none.
FLOWFUSE_INLINE int64_t item_of(const int64_t* offsets, int64_t first, int64_t last, int64_t index) {
  if (index < offsets[first] || index >= offsets[last]) return -1;
  while (last - first > 1) {
    const int64_t middle = first + (last - first) / 2;
    if (offsets[middle] <= index) {
      first = middle;
    } else {
      last = middle;
    }
  }
  return first;
}

FLOWFUSE_INLINE int64_t event_index(const int64_t* offsets, int64_t item, int64_t count) {
  const int64_t offset = offsets[item];
  return offset < 0 ? 0 : offset > count ? count : offset;
}

// How many of `count` events item_of can give to an item, at most; exactly, where the offsets are in order.
FLOWFUSE_INLINE int64_t events_of(const int64_t* offsets, int64_t item, int64_t count) {
  const int64_t begin = event_index(offsets, item, count), end = event_index(offsets, item + 1, count);
  return end > begin ? end - begin : 0;
}

// End of a window, or its begin where it is too long for the products of its times: then no event is in it. The
// CPU kernels have raised before.
FLOWFUSE_INLINE int64_t window_end(int64_t t0, int64_t t1) {
  const uint64_t duration = static_cast<uint64_t>(t1) - static_cast<uint64_t>(t0);
  return duration <= static_cast<uint64_t>(kMaxDuration) ? t1 : t0;
}

}  // namespace flowfuse
