#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <type_traits>

#include "cpu/feature_lookup.h"
#include "operators/correlation_lookup.h"

namespace flowfuse::cpu {
namespace {

template <int kBytes, class T, class F>
FLOWFUSE_INLINE void tile_forward(const FeatureLookup<T, F>& params, int64_t index, T* taps) {
  PixelTile<T> tile;
  load_tile(params, index, tile);
  for (int level = 0; level < params.levels; ++level) {
    load_windows(params, level, params.maps[level].rows, params.maps[level].columns, tile);
    prefetch_windows<true>(params, tile, level, params.output);
    compute_taps<kBytes>(params, tile, level, taps);
    write_values<kBytes>(params, tile, level, taps);
  }
}

template <class T, class F>
void compute_windows(const char* op, const FeatureLookup<T, F>& params, const Tensor& output) {
  const Workers workers(op, output, params.tiles(), kTilePixels * params.block());
  workers.run(0, params.tiles(), [&](int64_t first, int64_t last, void* workspace) {
    T* taps = static_cast<T*>(workspace);
    if constexpr (std::is_same_v<F, BFloat16>) {
#if FLOWFUSE_BFLOAT16_PRODUCTS
      [&]() FLOWFUSE_TARGET_AVX512 {
        for (int64_t index = first; index < last; ++index) tile_forward<64>(params, index, taps);
      }();
#endif
    } else {
      FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                            tile_forward<kVectorBytes>(params, index, taps))
    }
  });
}

template <class T, class F>
Tensor forward(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords, int64_t radius,
               ScalarType dtype) {
  const char* op = "correlation_lookup";
  PreparedLookup<T, F> prepared(op, f0, f1_levels, coords, radius, dtype);
  FeatureLookup<T, F>& params = prepared.params;
  const Tensor output = allocate(op, f0, windows_shape(coords, f1_levels.size(), radius), sum_dtype(f0.scalar_type()));
  if (output.numel() == 0) return output;
  params.output = mutable_data<T>(output);
  compute_windows(op, params, output);
  return output;
}

// float32 is always multiplied exactly here.
Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool) {
  check_correlation_lookup("correlation_lookup", f0, f1_levels, coords, radius);
  const Tensor points = converted(coords, ScalarType::Double);
  const ScalarType dtype = f0.scalar_type();
  if (dtype == ScalarType::Double) return forward<double, double>(f0, f1_levels, points, radius, dtype);
#if FLOWFUSE_BFLOAT16_PRODUCTS
  const bool all_bfloat16 =
      dtype == ScalarType::BFloat16 && std::all_of(f1_levels.begin(), f1_levels.end(),
                                                   [&](const Tensor& level) { return level.scalar_type() == dtype; });
  if (all_bfloat16 && cpu_capability() >= CpuCapability::kAvx512Bf16) {
    return forward<float, BFloat16>(f0, f1_levels, points, radius, dtype);
  }
#endif
  return forward<float, float>(f0, f1_levels, points, radius, ScalarType::Float);
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::cpu::correlation_lookup));
}
