#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>

#include "checks.h"
#include "events.h"

namespace flowfuse {
namespace {

constexpr int64_t kChunk = 1024;  // events converted at a time: the buffers stay in the first-level cache

template <class From, class To>
void convert(const void* source, int64_t begin, int64_t count, To* out) {
  const From* from = static_cast<const From*>(source) + begin;
  for (int64_t i = 0; i < count; ++i) out[i] = static_cast<To>(from[i]);
}

void load_pixels(const void* source, ScalarType dtype, int64_t begin, int64_t count, int64_t* out) {
  switch (dtype) {
    case ScalarType::Byte: return convert<uint8_t>(source, begin, count, out);
    case ScalarType::Short: return convert<int16_t>(source, begin, count, out);
    case ScalarType::UInt16: return convert<uint16_t>(source, begin, count, out);
    case ScalarType::Int: return convert<int32_t>(source, begin, count, out);
    default: return convert<int64_t>(source, begin, count, out);
  }
}

void load_positions(const void* source, ScalarType dtype, int64_t begin, int64_t count, double* out) {
  if (dtype == ScalarType::Float) return convert<float>(source, begin, count, out);
  return convert<double>(source, begin, count, out);
}

template <class From>
void compare(const void* source, int64_t begin, int64_t count, int64_t* out) {
  const From* from = static_cast<const From*>(source) + begin;
  for (int64_t i = 0; i < count; ++i) out[i] = from[i] > 0 ? 1 : -1;
}

void load_signs(const void* source, ScalarType dtype, int64_t begin, int64_t count, int64_t* out) {
  switch (dtype) {
    case ScalarType::Byte:
    case ScalarType::Bool: return compare<uint8_t>(source, begin, count, out);
    case ScalarType::Char: return compare<int8_t>(source, begin, count, out);
    case ScalarType::Short: return compare<int16_t>(source, begin, count, out);
    case ScalarType::Int: return compare<int32_t>(source, begin, count, out);
    default: return compare<int64_t>(source, begin, count, out);
  }
}

struct AddTo {
  int64_t* sums;
  FLOWFUSE_INLINE void operator()(int64_t cell, int64_t weight) const { sums[cell] += weight; }
};

// Adds events [begin, end) to sums [bins, height, width]; returns how many were ignored.
int64_t add_pixel_events(const Events& events, int64_t begin, int64_t end, const Grid& grid, int64_t* sums) {
  int64_t x[kChunk], y[kChunk], sign[kChunk];
  int64_t ignored = 0;
  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t count = std::min(kChunk, end - start);
    load_pixels(events.x, events.position_dtype, start, count, x);
    load_pixels(events.y, events.position_dtype, start, count, y);
    load_signs(events.p, events.polarity_dtype, start, count, sign);
    for (int64_t i = 0; i < count; ++i) {
      ignored += !spread_pixel(grid, x[i], y[i], events.t[start + i], sign[i], AddTo{sums});
    }
  }
  return ignored;
}

int64_t add_rectified_events(const Events& events, int64_t begin, int64_t end, const Grid& grid,
                             int64_t* sums) {
  double x[kChunk], y[kChunk];
  int64_t sign[kChunk];
  int64_t ignored = 0;
  for (int64_t start = begin; start < end; start += kChunk) {
    const int64_t count = std::min(kChunk, end - start);
    load_positions(events.x, events.position_dtype, start, count, x);
    load_positions(events.y, events.position_dtype, start, count, y);
    load_signs(events.p, events.polarity_dtype, start, count, sign);
    for (int64_t i = 0; i < count; ++i) {
      ignored += !spread_rectified(grid, x[i], y[i], events.t[start + i], sign[i], AddTo{sums});
    }
  }
  return ignored;
}

std::tuple<Tensor, Tensor> voxelize(Tensor x, Tensor y, Tensor t, Tensor p, Tensor offsets, Tensor t0, Tensor t1,
                                    int64_t bins, int64_t height, int64_t width) {
  check_voxelize(x, y, t, p, offsets, t0, t1, bins, height, width);
  for (Tensor* tensor : {&x, &y, &t, &p, &offsets, &t0, &t1}) *tensor = torch::stable::contiguous(*tensor);
  const int64_t items = offsets.size(0) - 1;
  const int64_t* bounds = static_cast<const int64_t*>(offsets.const_data_ptr());
  const int64_t* begins = static_cast<const int64_t*>(t0.const_data_ptr());
  const int64_t* ends = static_cast<const int64_t*>(t1.const_data_ptr());
  check_event_values("voxelize", t.size(0), bounds, begins, ends, items);

  const Events events{x.const_data_ptr(), y.const_data_ptr(), p.const_data_ptr(),
                      static_cast<const int64_t*>(t.const_data_ptr()), x.scalar_type(), p.scalar_type()};
  const bool rectified = x.scalar_type() == ScalarType::Float || x.scalar_type() == ScalarType::Double;
  const int64_t cells = bins * height * width;
  Tensor voxels = allocate("voxelize", t, {items, bins, height, width}, ScalarType::Float);
  Tensor ignored = torch::stable::new_zeros(t, {items});
  float* out = static_cast<float*>(voxels.mutable_data_ptr());
  int64_t* ignored_out = static_cast<int64_t*>(ignored.mutable_data_ptr());

  // One item may be split among threads, each with sums of its own: integer sums do not depend on the split.
  // Items are taken a group at a time: the workspace does not grow with the batch.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t parts =
      std::max<int64_t>(1, std::min<int64_t>((threads + items - 1) / items, t.size(0) / std::max<int64_t>(1, cells)));
  const int64_t group = std::min(items, threads);
  Tensor sums = allocate("voxelize", t, {group * parts, cells}, ScalarType::Long);
  Tensor ignored_parts = torch::stable::new_zeros(t, {items * parts});
  int64_t* sum_data = static_cast<int64_t*>(sums.mutable_data_ptr());
  int64_t* ignored_data = static_cast<int64_t*>(ignored_parts.mutable_data_ptr());
  const auto grid_of = [&](int64_t b) {
    return Grid{bins, height, width, begins[b], ends[b], rectified ? space_bits(bounds[b + 1] - bounds[b]) : 0};
  };
  for (int64_t item = 0; item < items; item += group) {
    const int64_t count = std::min(group, items - item);
    torch::stable::parallel_for(0, count * parts, 1, [&](int64_t first, int64_t last) {
      for (int64_t task = first; task < last; ++task) {
        const int64_t b = item + task / parts, part = task % parts;
        const int64_t share = (bounds[b + 1] - bounds[b]) / parts;
        const int64_t begin = bounds[b] + share * part;
        const int64_t end = part + 1 == parts ? bounds[b + 1] : begin + share;
        int64_t* sum = sum_data + task * cells;
        std::fill(sum, sum + cells, int64_t{0});
        const auto add = rectified ? add_rectified_events : add_pixel_events;
        ignored_data[item * parts + task] = add(events, begin, end, grid_of(b), sum);
      }
    });
    torch::stable::parallel_for(0, count * cells, 1 << 16, [&](int64_t first, int64_t last) {
      for (int64_t index = first; index < last;) {
        const int64_t b = index / cells;  // within the group
        const int64_t stop = std::min(last, (b + 1) * cells);
        const float scale = voxel_scale(grid_of(item + b).space_bits);
        const int64_t* sum = sum_data + b * parts * cells - b * cells;
        for (; index < stop; ++index) {
          int64_t total = 0;
          for (int64_t part = 0; part < parts; ++part) total += sum[part * cells + index];
          out[item * cells + index] = static_cast<float>(total) * scale;
        }
      }
    });
  }
  for (int64_t task = 0; task < items * parts; ++task) ignored_out[task / parts] += ignored_data[task];
  return {voxels, ignored};
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("voxelize", TORCH_BOX(&flowfuse::voxelize));
}
