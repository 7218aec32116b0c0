#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cpu/feature_lookup.h"
#include "cpu/read_lookup.h"
#include "operators/read_lookup.h"

namespace flowfuse::cpu {
namespace {

template <int kBytes, class T, class F>
FLOWFUSE_INLINE void read_tiles(const FeatureLookup<T, F>& lookup, const WindowReading<T, T>& params, int64_t first,
                                int64_t last, T sharpness, T* workspace) {
  const auto make_taps = [&](PixelTile<T>& tile, int level, T* taps) FLOWFUSE_INLINE_LAMBDA {
    load_windows(lookup, level, lookup.maps[level].rows, lookup.maps[level].columns, tile);
    compute_taps<kBytes>(lookup, tile, level, taps);
  };
  for (int64_t index = first; index < last; ++index) {
    read_tile<kBytes>(lookup, params, index, sharpness, workspace, make_taps);
  }
}

template <class T, class F>
void run(const char* op, const FeatureLookup<T, F>& lookup, const WindowReading<T, T>& params, const Tensor& like) {
  const T sharpness = sharpness_of(params);
  const Workers workers(op, like, lookup.tiles(), reading_workspace(lookup, params.channels));
  workers.run(0, lookup.tiles(), [&](int64_t first, int64_t last, void* workspace) {
    FLOWFUSE_PRODUCT_VARIANTS(
        F, read_tiles<kVectorBytes>(lookup, params, first, last, sharpness, static_cast<T*>(workspace)))
  });
}

// float32 is always multiplied exactly here.
std::tuple<Tensor, Tensor> read_correlation(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius,
                                            bool, std::optional<Tensor> fade, std::optional<Tensor> gate,
                                            Tensor offsets, Tensor log_sharpness, std::optional<Tensor> weight,
                                            std::optional<Tensor> bias) {
  const char* op = "read_correlation";
  const ReadingArguments given{fade, gate, offsets, log_sharpness, weight, bias};
  const WindowSizes sizes = check_read_correlation(op, f0, f1_levels, coords, radius, given);
  const Tensor points = converted(coords, ScalarType::Double);
  return make_exact_reading(op, sizes, given, [&](const auto& params) {
    using T = typename std::decay_t<decltype(params)>::Value;
    with_products<T>(f0, f1_levels, [&](auto feature, ScalarType dtype) {
      const PreparedLookup<T, decltype(feature)> prepared(op, f0, f1_levels, points, radius, dtype);
      run(op, prepared.params, params, offsets);
    });
  });
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) { m.impl("read_correlation", TORCH_BOX(&flowfuse::cpu::read_correlation)); }
