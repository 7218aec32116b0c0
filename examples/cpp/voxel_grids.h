// The inputs that flowfuse makes of events, to the bit: voxel grids and the event sum.
//
// C++17 and nothing else: copy this file to where there is no Python and no torch. examples/onnx_numpy.py has the same
// in numpy, flowfuse/inputs.py the original. Events lie at whole pixels; rectify frames, or map events to the nearest.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <vector>

namespace flowfuse {

struct Event {
  int64_t t;  // microseconds
  int32_t x, y;
  bool brighter;  // its polarity
};

struct Size {
  int64_t height, width;  // px
};

constexpr int64_t kTimeUnit = int64_t{1} << 15;  // weights in time are whole multiples of its inverse
constexpr int64_t kMaxDuration = int64_t{1} << 40, kMaxBins = int64_t{1} << 16;  // no sum overflows

inline void require(bool condition, const std::string& message) {
  if (!condition) throw std::invalid_argument(message);
}

// Adds polarities of the events in [t0, t1) to a grid, spread linearly over bins in time.
//   events: in any order; those outside of the time or the sensor are left out.
//   end: where the last bin lies, t1 or later; the first lies at t0. All in microseconds.
// Returns [bins, height, width].
inline std::vector<float> voxel_grid(const std::vector<Event>& events, int64_t t0, int64_t t1, int64_t bins, Size size,
                                     int64_t end) {
  require(bins >= 1 && bins <= kMaxBins, "voxel_grid: bins must be in [1, 65536], got " + std::to_string(bins));
  require(size.height >= 1 && size.width >= 1, "voxel_grid: height and width must be at least 1, got " +
                                                   std::to_string(size.height) + " and " + std::to_string(size.width));
  require(t0 < t1 && t1 <= end && end - t0 <= kMaxDuration,
          "voxel_grid: expected t0 < t1 <= end <= t0 + 2^40 us, got " + std::to_string(t0) + ", " + std::to_string(t1) +
              ", " + std::to_string(end));
  const int64_t pixels = size.height * size.width, duration = end - t0;
  std::vector<int64_t> sums(static_cast<std::size_t>(bins * pixels));
  for (const Event& event : events) {
    if (event.t < t0 || event.t >= t1) continue;
    if (event.x < 0 || event.x >= size.width || event.y < 0 || event.y >= size.height) continue;
    const int64_t position = (bins - 1) * (event.t - t0), bin = position / duration;
    const int64_t late = position % duration * kTimeUnit / duration;  // weight of the later bin
    const int64_t sign = event.brighter ? 1 : -1;
    int64_t* cell = sums.data() + bin * pixels + event.y * size.width + event.x;
    *cell += sign * (kTimeUnit - late);
    if (late > 0) cell[pixels] += sign * late;  // the last bin lies at the end, so there is one after this
  }
  std::vector<float> grid(sums.size());
  std::transform(sums.begin(), sums.end(), grid.begin(),
                 [](int64_t sum) { return static_cast<float>(sum) / static_cast<float>(kTimeUnit); });
  return grid;
}

// The slices E_0 .. E_K of equal duration, of which E_0 ends at t0 and E_K at t1: [slices + 1, bins, height, width].
// t0 and t1 are the times of the frames in microseconds; E_0 needs events from before t0.
inline std::vector<float> voxel_grids(const std::vector<Event>& events, int64_t t0, int64_t t1, int64_t slices,
                                      int64_t bins, Size size) {
  require(slices >= 1 && t1 - t0 >= slices, "voxel_grids: [" + std::to_string(t0) + ", " + std::to_string(t1) +
                                                ") us is too short for " + std::to_string(slices) +
                                                " slices of at least 1 us");
  const int64_t total = t1 - t0;
  // k * total / slices, rounded down, as Python does with the negative k of E_0, too.
  const auto limit = [&](int64_t k) { return k < 0 ? t0 - (total + slices - 1) / slices : t0 + k * total / slices; };
  std::vector<float> grids;
  for (int64_t k = -1; k < slices; ++k) {
    const std::vector<float> grid = voxel_grid(events, limit(k), limit(k + 1), bins, size, limit(k + 1));
    grids.insert(grids.end(), grid.begin(), grid.end());
  }
  return grids;
}

// Polarities from frame 0 to frame 1 as the exposures see them: [height, width]. The weight of an event rises from 0 to
// 1 over exposure 0, whose middle is t0, and falls to 0 over exposure 1. Exposures are in microseconds, 0 = unknown.
inline std::vector<float> event_sum(const std::vector<Event>& events, int64_t t0, int64_t t1, int64_t exposure0,
                                    int64_t exposure1, Size size) {
  require(exposure0 >= 0 && exposure1 >= 0, "event_sum: exposures must be 0 or more, got " + std::to_string(exposure0) +
                                                " and " + std::to_string(exposure1));
  const int64_t first = t0 - exposure0 / 2, last = t1 + exposure1 / 2;
  int64_t start = t0 + exposure0 / 2, end = t1 - exposure1 / 2;
  if (start > end) {  // overlapping exposures: both are cut in the middle
    const int64_t both = start + end;
    start = end = both / 2 - (both % 2 < 0);
  }
  const auto pixels = static_cast<std::ptrdiff_t>(size.height * size.width);
  std::vector<float> total(static_cast<std::size_t>(pixels));
  // Adds one bin of a grid.
  const auto add = [&](const std::vector<float>& grid, int64_t bin) {
    std::transform(total.begin(), total.end(), grid.begin() + bin * pixels, total.begin(),
                   [](float sum, float value) { return sum + value; });
  };
  if (start < end) add(voxel_grid(events, start, end, 1, size, end), 0);
  if (first < start) add(voxel_grid(events, first, start, 2, size, start), 1);
  if (end < last) add(voxel_grid(events, end, last, 2, size, last), 0);
  return total;
}

}  // namespace flowfuse
