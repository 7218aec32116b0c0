#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/read_lookup.h"
#include "cpu/volume_lookup.h"
#include "operators/read_lookup.h"

namespace flowfuse::cpu {
namespace {

template <int kBytes, class T>
FLOWFUSE_INLINE void read_tiles(const VolumeLookup<T>& lookup, const WindowReading<T, T>& params, int64_t first,
                                int64_t last, T sharpness, T* workspace) {
  const auto make_taps = [&](PixelTile<T>& tile, int level, T* taps) FLOWFUSE_INLINE_LAMBDA {
    load_windows(lookup, level, lookup.volumes[level].rows, lookup.volumes[level].columns, tile);
    read_taps(lookup, tile, level, taps);
  };
  for (int64_t index = first; index < last; ++index) {
    read_tile<kBytes>(lookup, params, index, sharpness, workspace, make_taps);
  }
}

template <class T>
void run(const char* op, const VolumeLookup<T>& lookup, const WindowReading<T, T>& params, const Tensor& like) {
  const T sharpness = sharpness_of(params);
  const Workers workers(op, like, lookup.tiles(), reading_workspace(lookup, params.channels));
  workers.run(0, lookup.tiles(), [&](int64_t first, int64_t last, void* workspace) {
    FLOWFUSE_VARIANTS(read_tiles<kVectorBytes>(lookup, params, first, last, sharpness, static_cast<T*>(workspace)))
  });
}

std::tuple<Tensor, Tensor> read_volume(std::vector<Tensor> volumes, Tensor coords, int64_t radius,
                                       std::optional<Tensor> fade, std::optional<Tensor> gate, Tensor offsets,
                                       Tensor log_sharpness, std::optional<Tensor> weight, std::optional<Tensor> bias) {
  const char* op = "read_volume";
  const ReadingArguments given{fade, gate, offsets, log_sharpness, weight, bias};
  const WindowSizes sizes = check_read_volume(op, volumes, coords, radius, given);
  const Tensor exact = converted(coords, ScalarType::Double);
  return make_exact_reading(op, sizes, given, [&](const auto& params) {
    using T = typename std::decay_t<decltype(params)>::Value;
    run(op, lookup_of<T>(volumes, exact, radius), params, offsets);
  });
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) { m.impl("read_volume", TORCH_BOX(&flowfuse::cpu::read_volume)); }
