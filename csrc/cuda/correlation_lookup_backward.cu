// The gradients of look-ups on demand. Those in the coordinates need the taps again and go as the look-ups do. Those of
// the taps are kept, some tiles at a time; those in the features are gathered from them (correlation_gradients.cuh and
// correlation_matrix_gradients.cuh).
#include <tuple>

#include "cuda/correlation_gradients.cuh"
#include "cuda/correlation_matrix_gradients.cuh"
#include "cuda/correlation_products.cuh"
#include "operators/correlation_lookup.h"

namespace flowfuse::cuda {
namespace {

#ifndef FLOWFUSE_WORKSPACE
#define FLOWFUSE_WORKSPACE (int64_t{64} << 20)  // bytes kept between kernels at a time
#endif

// Where the windows of each tile lie, and those of kWarp tiles together: a block has these, a warp some of them.
template <class T, class F>
__global__ void __launch_bounds__(kWarp* kWarp) list_windows(GradientParams<T, F> params) {
  Box* boxes = shared_memory<Box>();  // [warps]
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int64_t index = blockIdx.x; index < params.items_in_hand * params.levels * params.groups(); index += gridDim.x) {
    const int64_t item = index / params.groups() / params.levels, first = index % params.groups() * kWarp;
    const int level = static_cast<int>(index / params.groups() % params.levels);
    Box all = empty_box();
    for (int64_t tile = first + warp; tile < smaller(first + kWarp, params.tiles_in_hand); tile += warps) {
      const Window<T> window =
          window_of(params, params.item + item, spot_of(params, params.first_tile + tile, lane), level);
      const bool near = window.reach == Reach::kNear;
      const Origin origin{near ? window.x : kFar, near ? window.y : kFar};
      const Box own = cells_under(params.maps[level], origin.x, origin.y, params.tap_side(), params.tap_side());
      const Box box = enclosing_lanes(own, kWarp);
      const int64_t row = params.row(item, level, tile);
      params.origins[row * kPixels + lane] = origin;
      if (lane == 0) params.footprints[row] = box;
      all = enclosing(all, box);
    }
    if (lane == 0) boxes[warp] = all;
    __syncthreads();
    if (warp == 0) {
      const Box box = enclosing_lanes(lane < warps ? boxes[lane] : empty_box(), kWarp);
      if (lane == 0) params.group_footprints[index] = box;
    }
    __syncthreads();  // the boxes have been read
  }
}

// Gradient in the centres of a part of the windows of a tile, whose taps have been made: each thread sums the values
// of a pixel in some columns, then one of them these sums in their order.
template <class T, class F>
__device__ __forceinline__ void sum_centres(const GradientParams<T, F>& params, int64_t place, const WindowPart& part,
                                            const Window<T>* windows, const T* taps, T (*sums)[kPixels][2]) {
  const int i = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const Window<T> window = windows[i];
  T gx = 0, gy = 0;
  if (window.reach == Reach::kNear) {
    const T* values = params.grad + params.values_at(part.b, spot_of(params, part.number, i).pixel, part.level);
    for (int dx = warp; dx < part.columns - 1; dx += kTileWarps) {
      const T* near = taps + i * part.stride + dx * params.tap_side();
      for (int dy = 0; dy < params.value_side(); ++dy) {
        const T g = values[((part.first + dx) * params.value_side() + dy) * params.pixels];
        add_centre_gradient(g, window, near, near + params.tap_side(), dy, gx, gy);
      }
    }
  }
  sums[warp][i][0] = gx;
  sums[warp][i][1] = gy;
  __syncthreads();
  if (threadIdx.x < 2 * kPixels) {
    const int pixel = static_cast<int>(threadIdx.x) / 2, axis = static_cast<int>(threadIdx.x) % 2;
    T sum = 0;
    for (int other = 0; other < kTileWarps; ++other) sum += sums[other][pixel][axis];
    params.centre_sums[place * kPixels * 2 + threadIdx.x] = sum / static_cast<T>(int64_t{1} << part.level);
  }
}

// Number `index` of the parts of the windows of the tiles in hand.
template <class T, class F>
__device__ __forceinline__ WindowPart part_in_hand(const GradientParams<T, F>& params, int64_t index) {
  WindowPart part = part_of(params, index, params.items_in_hand, params.first_tile, params.tiles_in_hand);
  part.b += params.item;
  return part;
}

// Gradients in the centres of the windows of a tile, a level and a part of the windows.
template <class T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>) centre_gradients(GradientParams<T> params) {
  TileMemory<T>& memory = *shared_memory<TileMemory<T>>();
  const int64_t count = params.levels * params.parts * params.items_in_hand * params.tiles_in_hand;
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    load_tile(params, part_in_hand(params, index), memory);
    compute_taps(params, memory);
    sum_centres(params, index, memory.tile, memory.windows, memory.taps,
                reinterpret_cast<T(*)[kPixels][2]>(memory.cells));  // which have been read
    __syncthreads();                                                // the tile has been read
  }
}

template <class F>
__global__ void __launch_bounds__(kTileThreads, kMatrixBlocks)
    centre_gradients_by_matrices(GradientParams<float, F> params) {
  MatrixMemory& memory = *shared_memory<MatrixMemory>();
  const int64_t count = params.levels * params.parts * params.items_in_hand * params.tiles_in_hand;
  for (int64_t index = blockIdx.x; index < count; index += gridDim.x) {
    compute_taps_by_matrices(params, part_in_hand(params, index), memory);
    sum_centres(params, index, memory.parts[threadIdx.x / kWarp], memory.windows, memory.taps, memory.sums);
    __syncthreads();  // the taps have been read
  }
}

// Gradients of the taps in a column of a window, gathered from the values of the columns before and after it.
template <class T>
__device__ __forceinline__ void compute_column(const T* values, int64_t stride, const Corners<T>& corners, int size,
                                               int dx, T* taps) {
  const T* right = values + dx * size * stride;
  const T* left = right - size * stride;
  T left_above = 0, right_above = 0;  // the values of the row before
  for (int dy = 0; dy <= size; ++dy) {
    const T left_here = dx > 0 && dy < size ? left[dy * stride] : T(0);
    const T right_here = dx < size && dy < size ? right[dy * stride] : T(0);
    taps[dy] =
        corners.w11 * left_above + corners.w10 * left_here + corners.w01 * right_above + corners.w00 * right_here;
    left_above = left_here;
    right_above = right_here;
  }
}

// Gradients of the taps of a tile and a level, `most` columns at a time: a lane has a pixel, a warp some columns, so
// values are read along the pixels; taps are kept in the order of each window.
template <class T, class F>
__global__ void __launch_bounds__(kTileThreads) tap_gradients(GradientParams<T, F> params, int most) {
  T* taps = shared_memory<T>();
  const int i = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int side = params.tap_side(), stride = tap_stride(most, side), parts = (side + most - 1) / most;
  for (int64_t index = blockIdx.x; index < params.rows_in_hand() * parts; index += gridDim.x) {
    const int64_t row = index / parts, tile = params.first_tile + row % params.tiles_in_hand;
    const int first = static_cast<int>(index % parts) * most, columns = smaller(most, side - first);
    const int level = static_cast<int>(row / params.tiles_in_hand % params.levels);
    const int64_t b = params.item + row / params.tiles_in_hand / params.levels;
    const Spot spot = spot_of(params, tile, i);
    const Window<T> window = window_of(params, b, spot, level);
    if (window.reach == Reach::kNear) {  // taps of others are not read
      const T* values = params.grad + params.values_at(b, spot.pixel, level);
      for (int column = warp; column < columns; column += kTileWarps) {
        compute_column(values, params.pixels, corners_of(window), params.value_side(), first + column,
                       taps + i * stride + column * side);
      }
    } else {
      for (int k = warp; k < columns * side; k += kTileWarps) taps[i * stride + k] = 0;
    }
    __syncthreads();
    T* kept = params.kept + row * kPixels * params.tap_count() + first * side;
    for (int pixel = warp; pixel < kPixels; pixel += kTileWarps) {
      for (int k = i; k < columns * side; k += kWarp) kept[pixel * params.tap_count() + k] = taps[pixel * stride + k];
    }
    __syncthreads();  // the taps have been read
  }
}

// Gradient in the coordinates: the sums of all levels and parts of windows.
template <class T, class F>
__global__ void __launch_bounds__(kThreads) add_centres(GradientParams<T, F> params) {
  const int64_t count = params.items_in_hand * params.tiles_in_hand * kPixels * 2;
  for (int64_t index = first_item(); index < count; index += item_step()) {
    const int axis = static_cast<int>(index % 2), i = static_cast<int>(index / 2 % kPixels);
    const int64_t tile = index / 2 / kPixels;
    const Spot spot = spot_of(params, params.first_tile + tile % params.tiles_in_hand, i);
    if (!spot.there) continue;
    T sum = 0;
    for (int part = 0; part < params.levels * params.parts; ++part) sum += params.centre_sums[part * count + index];
    params.grad_coords[((params.item + tile / params.tiles_in_hand) * 2 + axis) * params.pixels + spot.pixel] = sum;
  }
}

// Slices for a level, from what an item has alone: the same bits whatever the batch.
template <class T, class F>
void plan_slices(GradientParams<T, F>& params) {
  for (int level = 0; level < params.levels; ++level) {
    MapGradient<T>& target = params.targets[level];
    const int64_t warps = std::max<int64_t>(1, target.regions * params.chunks());
    target.slices = std::max<int64_t>(1, std::min(kWantedWarps / warps, params.tiles_in_hand / 4));
  }
}

// Values in the slices of the levels of an item that have several.
template <class T, class F>
int64_t slice_values(const GradientParams<T, F>& params, bool once) {
  int64_t values = 0;
  for (int level = 0; level < params.levels; ++level) {
    const int64_t slices = params.targets[level].slices;
    if (slices > 1)
      values += (once ? 1 : slices) * params.maps[level].rows * params.maps[level].columns * params.channels;
  }
  return values;
}

// The tensors that are kept between the kernels of a group of tiles, and as many tiles as may be in hand.
template <class T, class F>
std::vector<Tensor> allocate_workspace(const char* op, const Tensor& like, GradientParams<T, F>& params,
                                       bool coords_needed) {
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const int64_t taps = (2 * params.radius + 2) * (2 * params.radius + 2);
  const int64_t centres = coords_needed ? 2 * params.levels * params.parts : 0;
  constexpr int64_t kBytes = sizeof(T), kOriginBytes = sizeof(Origin), kBoxBytes = sizeof(Box);
  const int64_t tile_bytes =
      kPixels * (params.levels * (taps * kBytes + kOriginBytes) + centres * kBytes) + params.levels * kBoxBytes;
  params.tiles_in_hand = params.tiles;
  plan_slices(params);
  const int64_t item_bytes = std::max<int64_t>(1, params.tiles * tile_bytes + slice_values(params, false) * kBytes);
  params.items_in_hand = std::min(params.items, std::max<int64_t>(1, FLOWFUSE_WORKSPACE / item_bytes));
  if (item_bytes > FLOWFUSE_WORKSPACE) {
    params.tiles_in_hand = std::min(params.tiles, std::max<int64_t>(1, FLOWFUSE_WORKSPACE / tile_bytes));
  }
  plan_slices(params);
  const int64_t rows = params.items_in_hand * params.levels * params.tiles_in_hand;
  std::vector<Tensor> storage;
  const auto values = [&](int64_t count, ScalarType type) {
    storage.push_back(allocate(op, like, {count}, type));
    return storage.back().mutable_data_ptr();
  };
  params.kept = static_cast<T*>(values(rows * kPixels * taps, dtype));
  params.origins = static_cast<Origin*>(values(rows * kPixels * 2, ScalarType::Long));
  params.footprints = static_cast<Box*>(values(rows * 4, ScalarType::Long));
  params.group_footprints =
      static_cast<Box*>(values(params.items_in_hand * params.levels * params.groups() * 4, ScalarType::Long));
  if (coords_needed) {
    params.centre_sums =
        static_cast<T*>(values(params.items_in_hand * params.tiles_in_hand * kPixels * centres, dtype));
  }
  T* sums = static_cast<T*>(values(params.items_in_hand * slice_values(params, false), dtype));
  for (int level = 0; level < params.levels; ++level) {
    MapGradient<T>& target = params.targets[level];
    target.sums = sums;
    if (target.slices == 1) continue;
    sums +=
        target.slices * params.items_in_hand * params.maps[level].rows * params.maps[level].columns * params.channels;
  }
  return storage;
}

// The gradients in the features, gathered from those of the taps.
template <class T>
void gather(const DeviceCall& call, const GradientParams<T>& params, unsigned pixel_blocks, int64_t region_warps) {
  constexpr size_t kBytes = kTileWarps * sizeof(FactorMemory<T>);
  call.launch(gather_f0<T>, pixel_blocks, kTileThreads, kBytes, params);
  call.launch(gather_f1<T>, blocks_for(region_warps, kTileWarps), kTileThreads, kBytes, params, region_warps);
}

template <int kChannels, class F>
void gather_by_matrices(const DeviceCall& call, const GradientParams<float, F>& params, unsigned pixel_blocks,
                        int64_t region_warps) {
  constexpr size_t kBytes = kTileWarps * sizeof(PixelList);
  call.launch(gather_f0_by_matrices<kChannels, F>, pixel_blocks, kTileThreads, 0, params);
  call.launch(gather_f1_by_matrices<kChannels, F>, blocks_for(region_warps, kTileWarps), kTileThreads, kBytes, params,
              region_warps);
}

// The kernels for the tiles in hand.
template <bool kMatrices, class T, class F>
void run_group(const DeviceCall& call, const GradientParams<T, F>& params) {
  const int64_t tiles = params.items_in_hand * params.tiles_in_hand;
  const unsigned listers = static_cast<unsigned>(std::min<int64_t>(kWarp, params.tiles_in_hand));  // warps
  call.launch(list_windows<T, F>, blocks_for(params.items_in_hand * params.levels * params.groups(), 1),
              kWarp * listers, listers * sizeof(Box), params);
  if (params.centre_sums != nullptr) {
    const unsigned blocks = blocks_for(tiles * params.levels * params.parts, 1);
    if constexpr (kMatrices) {
      call.launch(centre_gradients_by_matrices<F>, blocks, kTileThreads, matrix_bytes(params), params);
    } else {
      call.launch(centre_gradients<T>, blocks, kTileThreads, tile_bytes(params), params);
    }
    call.launch(add_centres<T, F>, blocks_for(tiles * kPixels * 2), kThreads, 0, params);
  }
  const int side = 2 * params.radius + 2;
  const int most = std::min(side, static_cast<int>(kSharedLimit / (kPixels * sizeof(T)) - 1) / side);
  call.launch(tap_gradients<T, F>, blocks_for(tiles * params.levels * ((side + most - 1) / most), 1), kTileThreads,
              kPixels * tap_stride(most, side) * sizeof(T), params, most);
  int64_t warps = 0;
  for (int level = 0; level < params.levels; ++level) {
    warps += params.items_in_hand * params.targets[level].regions * params.targets[level].slices * params.chunks();
  }
  const unsigned blocks = blocks_for(tiles * params.chunks(), 1);
  if constexpr (kMatrices) {
    const auto run = params.chunk == 64 ? gather_by_matrices<64, F> : gather_by_matrices<kMostChannels<F>, F>;
    run(call, params, blocks, warps);
  } else {
    gather(call, params, blocks, warps);
  }
  const int64_t elements = params.items_in_hand * slice_values(params, true);
  call.launch(add_slices<T, F>, blocks_for(elements), kThreads, 0, params, elements);
}

// Channels of a warp.
template <bool kMatrices, class T, class F>
int64_t chunk_of(int64_t channels) {
  if (kMatrices) return channels > 64 ? kMostChannels<F> : 64;
  const int64_t quads = (channels + Quad<T>::kCount - 1) / Quad<T>::kCount;
  return (quads > 16 ? 32 : quads > 8 ? 16 : 8) * Quad<T>::kCount;
}

template <bool kMatrices, class T, class F>
void run_backward(const char* op, const DeviceCall& call, const FeatureLookup<T, F>& lookup, const Tensor& grad,
                  const Tensor& grad_f0, const std::vector<Tensor>& grads, const Tensor& grad_coords) {
  GradientParams<T, F> params{};
  static_cast<FeatureLookup<T, F>&>(params) = lookup;
  params.chunk = chunk_of<kMatrices, T, F>(params.channels);
  params.grad = data<T>(grad);
  params.grad_f0 = mutable_data<T>(grad_f0);
  params.grad_coords = mutable_data<T>(grad_coords);
  for (int level = 0; level < params.levels; ++level) {
    const FeatureMap<F>& map = params.maps[level];
    params.targets[level].grad = mutable_data<T>(grads[level]);
    params.targets[level].regions =
        ((map.columns + kRegionColumns - 1) / kRegionColumns) * ((map.rows + kRegionRows - 1) / kRegionRows);
  }
  if (params.tiles == 0) {  // no pixel, so no block, would write them
    for (const Tensor& target : grads) call.clear(target);
  }
  const std::vector<Tensor> storage = allocate_workspace(op, grad, params, grad_coords.numel() > 0);
  const int64_t items = params.items_in_hand, tiles = params.tiles_in_hand;
  for (params.item = 0; params.item < params.items; params.item += items) {
    params.items_in_hand = std::min(items, params.items - params.item);
    for (params.first_tile = 0; params.first_tile < params.tiles; params.first_tile += tiles) {
      params.tiles_in_hand = std::min(tiles, params.tiles - params.first_tile);
      run_group<kMatrices>(call, params);
    }
  }
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward(Tensor grad, Tensor f0,
                                                                            std::vector<Tensor> f1_levels,
                                                                            Tensor coords, int64_t radius,
                                                                            bool coords_needed, bool exact) {
  const char* op = "correlation_lookup_backward";
  check_correlation_lookup(op, f0, f1_levels, coords, radius);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  check_gradient(op, grad, windows_shape(coords, f1_levels.size(), radius), dtype, "f0", f0);
  const DeviceCall call(op, f0);
  const Tensor points = converted(coords, coords.scalar_type()), g = converted(grad, dtype);
  const Tensor grad_f0 = empty_channels_last(op, f0, dtype);
  const Tensor grad_coords = empty_coords_gradient(op, coords, coords_needed, dtype);
  std::vector<Tensor> grads;
  for (const Tensor& map : f1_levels) grads.push_back(empty_channels_last(op, map, dtype));
  with_arithmetic<true>(f0, f1_levels, points, radius, exact, [&](const auto& lookup, auto by_matrices) {
    run_backward<by_matrices>(op, call, lookup, g, grad_f0, grads, grad_coords);
  });
  for (size_t level = 0; level < grads.size(); ++level) {
    grads[level] = torch::stable::to(grads[level], f1_levels[level].scalar_type());
  }
  return {torch::stable::to(grad_f0, f0.scalar_type()), grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("correlation_lookup_backward", TORCH_BOX(&flowfuse::cuda::correlation_lookup_backward));
}
