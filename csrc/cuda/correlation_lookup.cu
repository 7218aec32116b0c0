// Look-ups on demand: a block makes the products of a tile of pixels with a level, combines them and stores along the
// pixels. All levels go in one launch: a coarse one alone would not fill a device.
#include "cuda/correlation_matrix.cuh"
#include "cuda/correlation_products.cuh"
#include "operators/correlation_lookup.h"

namespace flowfuse::cuda {
namespace {

template <class F>
__global__ void __launch_bounds__(kTileThreads, kMatrixBlocks)
    look_up_by_matrices(FeatureLookup<float, F> params, float* __restrict__ output) {
  MatrixMemory& memory = *shared_memory<MatrixMemory>();
  const int64_t count = params.levels * params.parts * params.items * params.tiles;
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    compute_taps_by_matrices(params, part_of(params, index, params.items, 0, params.tiles), memory);
    store_values(params, memory.parts[threadIdx.x / kWarp], memory.windows, memory.taps, output);
    __syncthreads();  // the taps have been read
  }
}

template <class T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>)
    look_up_features(FeatureLookup<T> params, T* __restrict__ output) {
  TileMemory<T>& memory = *shared_memory<TileMemory<T>>();
  const int64_t count = params.levels * params.parts * params.items * params.tiles;
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    load_tile(params, part_of(params, index, params.items, 0, params.tiles), memory);
    compute_taps(params, memory);
    store_values(params, memory.tile, memory.windows, memory.taps, output);
    __syncthreads();  // the tile has been read
  }
}

Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool exact) {
  const char* op = "correlation_lookup";
  check_correlation_lookup(op, f0, f1_levels, coords, radius);
  const DeviceCall call(op, f0);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  const Tensor output = allocate(op, f0, windows_shape(coords, f1_levels.size(), radius), dtype);
  const Tensor points = converted(coords, coords.scalar_type());
  with_arithmetic<false>(f0, f1_levels, points, radius, exact, [&](const auto& params, auto by_matrices) {
    using T = std::decay_t<decltype(params.scale)>;
    const unsigned blocks = blocks_for(params.levels * params.parts * params.items * params.tiles, 1);
    if constexpr (by_matrices) {
      call.launch(look_up_by_matrices<feature_type<decltype(params)>>, blocks, kTileThreads, matrix_bytes(params),
                  params, mutable_data<T>(output));
    } else {
      call.launch(look_up_features<T>, blocks, kTileThreads, tile_bytes(params), params, mutable_data<T>(output));
    }
  });
  return output;
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::cuda::correlation_lookup));
}
