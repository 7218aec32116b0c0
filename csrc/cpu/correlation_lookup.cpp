#include <torch/csrc/stable/library.h>

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
    FLOWFUSE_PRODUCT_VARIANTS(F, for (int64_t index = first; index < last; ++index)
                                     tile_forward<kVectorBytes>(params, index, static_cast<T*>(workspace)))
  });
}

template <class T>
Tensor forward(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords,
               int64_t radius) {
  const Tensor output = allocate(op, f0, windows_shape(coords, f1_levels.size(), radius), sum_dtype(f0.scalar_type()));
  if (output.numel() == 0) return output;
  with_products<T>(f0, f1_levels, [&](auto feature, ScalarType dtype) {
    PreparedLookup<T, decltype(feature)> prepared(op, f0, f1_levels, coords, radius, dtype);
    prepared.params.output = mutable_data<T>(output);
    compute_windows(op, prepared.params, output);
  });
  return output;
}

// float32 is always multiplied exactly here.
Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool) {
  const char* op = "correlation_lookup";
  check_correlation_lookup(op, f0, f1_levels, coords, radius);
  const Tensor points = converted(coords, ScalarType::Double);
  const bool wide = f0.scalar_type() == ScalarType::Double;
  return (wide ? forward<double> : forward<float>)(op, f0, f1_levels, points, radius);
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::cpu::correlation_lookup));
}
