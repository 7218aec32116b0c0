// The gradients of look-ups on demand. Those in the coordinates need the taps again and go as the look-ups do. Those of
// the taps are kept, some tiles at a time; those in the features are gathered from them (correlation_gradients.cuh).
#include <tuple>

#include "cuda/correlation_gradients.cuh"
#include "cuda/correlation_products.cuh"
#include "operators/correlation_lookup.h"

namespace flowfuse {
namespace {

#ifndef FLOWFUSE_WORKSPACE
#define FLOWFUSE_WORKSPACE (int64_t{64} << 20)  // bytes kept between kernels at a time
#endif

// Where the windows of each tile lie, and those of kWarp tiles together: a block has these, a warp some of them.
template <class T>
__global__ void __launch_bounds__(kWarp * kWarp) list_windows(GradientJob<T> job) {
  Box* boxes = shared_memory<Box>();  // [warps]
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int warps = static_cast<int>(blockDim.x) / kWarp;
  for (int64_t index = blockIdx.x; index < job.items_in_hand * job.levels * job.groups(); index += gridDim.x) {
    const int64_t item = index / job.groups() / job.levels, first = index % job.groups() * kWarp;
    const int level = static_cast<int>(index / job.groups() % job.levels);
    Box all = empty_box();
    for (int64_t tile = first + warp; tile < smaller(first + kWarp, job.tiles_in_hand); tile += warps) {
      const Window<T> window =
          window_of(job, job.item + item, spot_of(job, job.first_tile + tile, lane), level);
      const bool near = window.reach == Reach::kNear;
      const Origin origin{near ? window.x : kFar, near ? window.y : kFar};
      const Box own = cells_under(job.maps[level], origin.x, origin.y, job.side(), job.side());
      const Box box = around_lanes(own, kWarp);
      const int64_t row = job.row(item, level, tile);
      job.origins[row * kPixels + lane] = origin;
      if (lane == 0) job.footprints[row] = box;
      all = around(all, box);
    }
    if (lane == 0) boxes[warp] = all;
    __syncthreads();
    if (warp == 0) {
      const Box box = around_lanes(lane < warps ? boxes[lane] : empty_box(), kWarp);
      if (lane == 0) job.group_footprints[index] = box;
    }
    __syncthreads();  // the boxes have been read
  }
}

// Gradient in the centres of a part of the windows of a tile, whose taps have been made: each thread sums the values
// of a pixel in some columns, then one of them these sums in their order.
template <class T>
__device__ __forceinline__ void sum_centres(const GradientJob<T>& job, int64_t place, TileMemory<T>& memory) {
  const Tile<T>& tile = memory.tile;
  T(*sums)[kPixels][2] = reinterpret_cast<T(*)[kPixels][2]>(memory.cells);  // [kTileWarps]: the cells have been read
  const int i = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const Window<T> window = memory.windows[i];
  T gx = 0, gy = 0;
  if (window.reach == Reach::kNear) {
    const T* values = job.grad + job.values_at(tile.b, spot_of(job, tile.number, i).pixel, tile.level);
    for (int dx = warp; dx < tile.columns - 1; dx += kTileWarps) {
      const T* near = memory.taps + i * tile.stride + dx * job.side();
      for (int dy = 0; dy < job.size(); ++dy) {
        const T g = values[((tile.first + dx) * job.size() + dy) * job.pixels];
        add_centre_gradient(g, window, near, near + job.side(), dy, gx, gy);
      }
    }
  }
  sums[warp][i][0] = gx;
  sums[warp][i][1] = gy;
  __syncthreads();
  if (threadIdx.x < 2 * kPixels) {
    const int pixel = static_cast<int>(threadIdx.x) / 2, axis = static_cast<int>(threadIdx.x) % 2;
    T sum = 0;
    for (int part = 0; part < kTileWarps; ++part) sum += sums[part][pixel][axis];
    job.centre_sums[place * kPixels * 2 + threadIdx.x] = sum / static_cast<T>(int64_t{1} << tile.level);
  }
}

// Gradients in the centres of the windows of a tile, a level and a part of the windows.
template <class T>
__global__ void __launch_bounds__(kTileThreads, kTileBlocks<T>) centre_gradients(GradientJob<T> job) {
  TileMemory<T>& memory = *shared_memory<TileMemory<T>>();
  const int64_t each = job.items_in_hand * job.tiles_in_hand;
  for (int64_t index = blockIdx.x; index < job.levels * job.parts * each; index += gridDim.x) {
    const int part = static_cast<int>(index / each) % job.parts, level = static_cast<int>(index / each) / job.parts;
    const int64_t tile = job.first_tile + index % job.tiles_in_hand;
    take_tile(job, job.item + index % each / job.tiles_in_hand, tile, level, part, memory);
    make_taps(job, memory);
    sum_centres(job, index, memory);
    __syncthreads();  // the tile has been read
  }
}

// Gradients of the taps in a column of a window, gathered from the values of the columns before and after it.
template <class T>
__device__ __forceinline__ void make_column(const T* values, int64_t stride, const Corners<T>& corners, int size,
                                            int dx, T* taps) {
  const T* right = values + dx * size * stride;
  const T* left = right - size * stride;
  T left_above = 0, right_above = 0;  // the values of the row before
  for (int dy = 0; dy <= size; ++dy) {
    const T left_here = dx > 0 && dy < size ? left[dy * stride] : T(0);
    const T right_here = dx < size && dy < size ? right[dy * stride] : T(0);
    taps[dy] = corners.w11 * left_above + corners.w10 * left_here + corners.w01 * right_above +
               corners.w00 * right_here;
    left_above = left_here;
    right_above = right_here;
  }
}

// Gradients of the taps of a tile and a level, `most` columns at a time: a lane has a pixel, a warp some columns, so
// values are read along the pixels; taps are kept in the order of each window.
template <class T>
__global__ void __launch_bounds__(kTileThreads) tap_gradients(GradientJob<T> job, int most) {
  T* taps = shared_memory<T>();
  const int i = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  const int side = job.side(), stride = tap_stride(most, side), parts = (side + most - 1) / most;
  for (int64_t index = blockIdx.x; index < job.rows_in_hand() * parts; index += gridDim.x) {
    const int64_t row = index / parts, tile = job.first_tile + row % job.tiles_in_hand;
    const int first = static_cast<int>(index % parts) * most, columns = smaller(most, side - first);
    const int level = static_cast<int>(row / job.tiles_in_hand % job.levels);
    const int64_t b = job.item + row / job.tiles_in_hand / job.levels;
    const Spot spot = spot_of(job, tile, i);
    const Window<T> window = window_of(job, b, spot, level);
    if (window.reach == Reach::kNear) {  // taps of others are not read
      const T* values = job.grad + job.values_at(b, spot.pixel, level);
      for (int column = warp; column < columns; column += kTileWarps) {
        make_column(values, job.pixels, corners_of(window), job.size(), first + column,
                    taps + i * stride + column * side);
      }
    } else {
      for (int k = warp; k < columns * side; k += kTileWarps) taps[i * stride + k] = 0;
    }
    __syncthreads();
    T* kept = job.kept + row * kPixels * job.taps() + first * side;
    for (int pixel = warp; pixel < kPixels; pixel += kTileWarps) {
      for (int k = i; k < columns * side; k += kWarp) kept[pixel * job.taps() + k] = taps[pixel * stride + k];
    }
    __syncthreads();  // the taps have been read
  }
}

// Gradient in the coordinates: the sums of all levels and parts of windows.
template <class T>
__global__ void __launch_bounds__(kThreads) add_centres(GradientJob<T> job) {
  const int64_t count = job.items_in_hand * job.tiles_in_hand * kPixels * 2;
  for (int64_t index = first_item(); index < count; index += item_step()) {
    const int axis = static_cast<int>(index % 2), i = static_cast<int>(index / 2 % kPixels);
    const int64_t tile = index / 2 / kPixels;
    const Spot spot = spot_of(job, job.first_tile + tile % job.tiles_in_hand, i);
    if (!spot.there) continue;
    T sum = 0;
    for (int part = 0; part < job.levels * job.parts; ++part) sum += job.centre_sums[part * count + index];
    job.grad_coords[((job.item + tile / job.tiles_in_hand) * 2 + axis) * job.pixels + spot.pixel] = sum;
  }
}

// Slices for a level, from what an item has alone: the same bits whatever the batch.
template <class T>
void plan_slices(GradientJob<T>& job) {
  for (int level = 0; level < job.levels; ++level) {
    MapGradient<T>& target = job.targets[level];
    const int64_t warps = std::max<int64_t>(1, target.regions * job.chunks());
    target.slices = std::max<int64_t>(1, std::min(kWantedWarps / warps, job.tiles_in_hand / 4));
  }
}

// Values in the slices of the levels of an item that have several.
template <class T>
int64_t slice_values(const GradientJob<T>& job, bool once) {
  int64_t values = 0;
  for (int level = 0; level < job.levels; ++level) {
    const int64_t slices = job.targets[level].slices;
    if (slices > 1) values += (once ? 1 : slices) * job.maps[level].rows * job.maps[level].columns * job.channels;
  }
  return values;
}

// The tensors that are kept between the kernels of a group of tiles, and as many tiles as may be in hand.
struct Workspace {
  std::vector<Tensor> held;
};

template <class T>
Workspace take_workspace(const char* op, const Tensor& like, GradientJob<T>& job, bool coords_needed) {
  const ScalarType dtype = std::is_same_v<T, double> ? ScalarType::Double : ScalarType::Float;
  const int64_t taps = (2 * job.radius + 2) * (2 * job.radius + 2);
  const int64_t centres = coords_needed ? 2 * job.levels * job.parts : 0;
  constexpr int64_t kBytes = sizeof(T), kOriginBytes = sizeof(Origin), kBoxBytes = sizeof(Box);
  const int64_t tile_bytes =
      kPixels * (job.levels * (taps * kBytes + kOriginBytes) + centres * kBytes) + job.levels * kBoxBytes;
  job.tiles_in_hand = job.tiles;
  plan_slices(job);
  const int64_t item_bytes = std::max<int64_t>(1, job.tiles * tile_bytes + slice_values(job, false) * kBytes);
  job.items_in_hand = std::min(job.items, std::max<int64_t>(1, FLOWFUSE_WORKSPACE / item_bytes));
  if (item_bytes > FLOWFUSE_WORKSPACE) {
    job.tiles_in_hand = std::min(job.tiles, std::max<int64_t>(1, FLOWFUSE_WORKSPACE / tile_bytes));
  }
  plan_slices(job);
  const int64_t rows = job.items_in_hand * job.levels * job.tiles_in_hand;
  Workspace space;
  const auto take = [&](int64_t count, ScalarType type) {
    space.held.push_back(allocate(op, like, {count}, type));
    return space.held.back().mutable_data_ptr();
  };
  job.kept = static_cast<T*>(take(rows * kPixels * taps, dtype));
  job.origins = static_cast<Origin*>(take(rows * kPixels * 2, ScalarType::Long));
  job.footprints = static_cast<Box*>(take(rows * 4, ScalarType::Long));
  job.group_footprints =
      static_cast<Box*>(take(job.items_in_hand * job.levels * job.groups() * 4, ScalarType::Long));
  if (coords_needed) {
    job.centre_sums = static_cast<T*>(take(job.items_in_hand * job.tiles_in_hand * kPixels * centres, dtype));
  }
  T* sums = static_cast<T*>(take(job.items_in_hand * slice_values(job, false), dtype));
  for (int level = 0; level < job.levels; ++level) {
    MapGradient<T>& target = job.targets[level];
    target.sums = sums;
    if (target.slices == 1) continue;
    sums += target.slices * job.items_in_hand * job.maps[level].rows * job.maps[level].columns * job.channels;
  }
  return space;
}

// The kernels for the tiles in hand.
template <class T>
void run_group(const DeviceCall& call, const GradientJob<T>& job) {
  const int64_t tiles = job.items_in_hand * job.tiles_in_hand;
  const unsigned listers = static_cast<unsigned>(std::min<int64_t>(kWarp, job.tiles_in_hand));  // warps
  call.launch(list_windows<T>, blocks_for(job.items_in_hand * job.levels * job.groups(), 1), kWarp * listers,
              listers * sizeof(Box), job);
  if (job.centre_sums != nullptr) {
    call.launch(centre_gradients<T>, blocks_for(tiles * job.levels * job.parts, 1), kTileThreads, tile_bytes<T>(job),
                job);
    call.launch(add_centres<T>, blocks_for(tiles * kPixels * 2), kThreads, 0, job);
  }
  const int side = 2 * job.radius + 2;
  const int most = std::min(side, static_cast<int>(kSharedLimit / (kPixels * sizeof(T)) - 1) / side);
  call.launch(tap_gradients<T>, blocks_for(tiles * job.levels * ((side + most - 1) / most), 1), kTileThreads,
              kPixels * tap_stride(most, side) * sizeof(T), job, most);
  constexpr size_t kFactorBytes = kTileWarps * sizeof(FactorMemory<T>);
  call.launch(gather_f0<T>, blocks_for(tiles * job.chunks(), 1), kTileThreads, kFactorBytes, job);
  int64_t warps = 0;
  for (int level = 0; level < job.levels; ++level) {
    warps += job.items_in_hand * job.targets[level].regions * job.targets[level].slices * job.chunks();
  }
  call.launch(gather_f1<T>, blocks_for(warps, kTileWarps), kTileThreads, kFactorBytes, job, warps);
  const int64_t elements = job.items_in_hand * slice_values(job, true);
  call.launch(add_slices<T>, blocks_for(elements), kThreads, 0, job, elements);
}

template <class T>
void run_backward(const char* op, const DeviceCall& call, const PreparedLookup<T>& lookup, const Tensor& grad,
                  const Tensor& grad_f0, const std::vector<Tensor>& grads, const Tensor& grad_coords) {
  GradientJob<T> job{};
  static_cast<FeatureLookup<T>&>(job) = lookup.job;
  const int64_t quads = (job.channels + Quad<T>::kCount - 1) / Quad<T>::kCount;
  job.lanes = quads > 16 ? 32 : quads > 8 ? 16 : 8;
  job.grad = data<T>(grad);
  job.grad_f0 = mutable_data<T>(grad_f0);
  job.grad_coords = mutable_data<T>(grad_coords);
  for (int level = 0; level < job.levels; ++level) {
    const Map& map = job.maps[level];
    job.targets[level].grad = mutable_data<T>(grads[level]);
    job.targets[level].regions = ((map.columns + kRegionColumns - 1) / kRegionColumns) *
                                 ((map.rows + kRegionRows - 1) / kRegionRows);
  }
  if (job.tiles == 0) {  // no pixel, so no block, would write them
    for (const Tensor& target : grads) call.clear(target);
  }
  const Workspace space = take_workspace(op, grad, job, grad_coords.numel() > 0);
  const int64_t items = job.items_in_hand, tiles = job.tiles_in_hand;
  for (job.item = 0; job.item < job.items; job.item += items) {
    job.items_in_hand = std::min(items, job.items - job.item);
    for (job.first_tile = 0; job.first_tile < job.tiles; job.first_tile += tiles) {
      job.tiles_in_hand = std::min(tiles, job.tiles - job.first_tile);
      run_group(call, job);
    }
  }
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward(
    Tensor grad, Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool coords_needed) {
  const char* op = "correlation_lookup_backward";
  check_correlation_lookup(op, f0, f1_levels, coords, radius);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  check_gradient(op, grad, windows_shape(coords, f1_levels.size(), radius), dtype, "f0", f0);
  const DeviceCall call(op, f0);
  const Tensor points = torch::stable::contiguous(coords), g = torch::stable::contiguous(grad);
  const Tensor grad_f0 = empty_channels_last(op, f0, dtype);
  const Tensor grad_coords = empty_coords_gradient(op, coords, coords_needed, dtype);
  std::vector<Tensor> grads;
  for (const Tensor& map : f1_levels) grads.push_back(empty_channels_last(op, map, dtype));
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const PreparedLookup<T> lookup(f0, f1_levels, points, radius);
    run_backward(op, call, lookup, g, grad_f0, grads, grad_coords);
  };
  dtype == ScalarType::Double ? run(double{}) : run(float{});
  for (size_t level = 0; level < grads.size(); ++level) {
    grads[level] = torch::stable::to(grads[level], f1_levels[level].scalar_type());
  }
  return {torch::stable::to(grad_f0, f0.scalar_type()), grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("correlation_lookup_backward", TORCH_BOX(&flowfuse::correlation_lookup_backward));
}
