// examples/cpp/voxel_grids.h for test_cpp.py, by ctypes. A message is returned where there is an error.
#include <cstring>
#include "voxel_grids.h"

using flowfuse::Event;
static std::string told;

static const char* write(const std::vector<float>& from, float* out) {
  std::memcpy(out, from.data(), from.size() * sizeof(float));
  return nullptr;
}

static std::vector<Event> events_of(const int64_t* rows, int64_t count) {
  std::vector<Event> events;
  for (int64_t i = 0; i < count; ++i, rows += 4) {
    events.push_back({rows[0], static_cast<int32_t>(rows[1]), static_cast<int32_t>(rows[2]), rows[3] > 0});
  }
  return events;
}

extern "C" const char* grids(const int64_t* rows, int64_t count, int64_t t0, int64_t t1, int64_t slices, int64_t bins,
                             int64_t height, int64_t width, float* out) try {
  return write(flowfuse::voxel_grids(events_of(rows, count), t0, t1, slices, bins, {height, width}), out);
} catch (const std::exception& error) {
  return (told = error.what()).c_str();
}

extern "C" const char* sum(const int64_t* rows, int64_t count, int64_t t0, int64_t t1, int64_t exposure0,
                           int64_t exposure1, int64_t height, int64_t width, float* out) try {
  return write(flowfuse::event_sum(events_of(rows, count), t0, t1, exposure0, exposure1, {height, width}), out);
} catch (const std::exception& error) {
  return (told = error.what()).c_str();
}
