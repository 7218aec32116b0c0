// Look-ups on demand: a block makes the products of a tile of pixels with a level (correlation_products.cuh), combines
// them and stores along the pixels. All levels go in one launch: a coarse one alone would not fill a device.
#include "cuda/correlation_products.cuh"
#include "operators/correlation_lookup.h"

namespace flowfuse::cuda {
namespace {

// Values of the windows of a tile from its taps: a lane has a pixel, a warp some columns.
template <class T>
__device__ __forceinline__ void store_values(const FeatureLookup<T>& params, const TileMemory<T>& memory, T* output) {
  const BlockTile<T>& tile = memory.tile;
  const int i = static_cast<int>(threadIdx.x) % kWarp;
  const Spot spot = spot_of(params, tile.number, i);
  if (!spot.there) return;
  const Window<T> window = memory.windows[i];
  const Corners<T> corners = corners_of(window);
  const T missing = window.reach == Reach::kMissing ? static_cast<T>(NAN) : T(0);
  for (int dx = static_cast<int>(threadIdx.x) / kWarp; dx < tile.columns - 1; dx += kTileWarps) {
    const T* near = memory.taps + i * tile.stride + dx * params.tap_side();
    T* out = output + params.values_at(tile.b, spot.pixel, tile.level) +
             (tile.first + dx) * params.value_side() * params.pixels;
    for (int dy = 0; dy < params.value_side(); ++dy) {
      *out = window.reach == Reach::kNear ? combined_value(corners, near, near + params.tap_side(), dy) : missing;
      out += params.pixels;
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>)
    look_up_features(FeatureLookup<T> params, T* __restrict__ output) {
  TileMemory<T>& memory = *shared_memory<TileMemory<T>>();
  const int64_t each = params.items * params.tiles;
  for (int64_t index = blockIdx.x; index < params.levels * params.parts * each; index += gridDim.x) {
    const int part = static_cast<int>(index / each) % params.parts,
              level = static_cast<int>(index / each) / params.parts;
    const int64_t b = index % each / params.tiles, number = index % params.tiles;
    load_tile(params, b, number, level, part, memory);
    compute_taps(params, memory);
    store_values(params, memory, output);
    __syncthreads();  // the tile has been read
  }
}

Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius) {
  const char* op = "correlation_lookup";
  check_correlation_lookup(op, f0, f1_levels, coords, radius);
  const DeviceCall call(op, f0);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  const Tensor output = allocate(op, f0, windows_shape(coords, f1_levels.size(), radius), dtype);
  const Tensor points = torch::stable::contiguous(coords);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const PreparedLookup<T> lookup(f0, f1_levels, points, radius);
    const FeatureLookup<T>& params = lookup.params;
    const int64_t blocks = params.levels * params.parts * params.items * params.tiles;
    call.launch(look_up_features<T>, blocks_for(blocks, 1), kTileThreads, tile_bytes(params), params,
                mutable_data<T>(output));
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  return output;
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::cuda::correlation_lookup));
}
