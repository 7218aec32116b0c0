// The gradients of look-ups on demand. Those of the taps and of the coordinates belong to a pixel and a level; they are
// found a tile at a time, as the look-ups are. Those of the features are gathered from them (correlation_gradients.cuh).
#include <tuple>

#include "cuda/correlation_gradients.cuh"

namespace flowfuse {
namespace {

constexpr int64_t kWorkspace = int64_t{64} << 20;  // bytes kept between kernels at a time

// Where the windows of each tile lie: a warp has a row.
template <class T>
__global__ void __launch_bounds__(kTileThreads) list_windows(GradientJob<T> job) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t row = int64_t{blockIdx.x} * kTileWarps + warp; row < job.rows_in_hand();
       row += int64_t{gridDim.x} * kTileWarps) {
    const int64_t tile = job.first_tile + row % job.tiles_in_hand;
    const int level = static_cast<int>(row / job.tiles_in_hand % job.levels);
    const int64_t b = job.item + row / job.tiles_in_hand / job.levels;
    const Window<T> window = window_of(job, b, spot_of(job, tile, lane), level);
    const bool near = window.reach == Reach::kNear;
    const Origin origin{near ? window.x : kFar, near ? window.y : kFar};
    const Box box = around_lanes(cells_under(job.maps[level], origin.x, origin.y, job.side(), job.side()), kWarp);
    job.origins[row * kPixels + lane] = origin;
    if (lane == 0) job.footprints[row] = box;
  }
}

// Gradient in the centres of a part of the windows of a tile, whose taps have been made: each thread sums the values
// of a pixel in some columns, then one of them these sums in their order.
template <class T>
__device__ __forceinline__ void sum_centres(const GradientJob<T>& job, int64_t place, TileMemory<T>& memory) {
  const Tile& tile = memory.tile;
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

// Gradients of the taps of a tile in `columns` columns, into shared memory: a lane has a pixel, a warp some columns.
template <class T>
__device__ __forceinline__ void make_tap_gradients(const GradientJob<T>& job, int columns, TileMemory<T>& memory) {
  const Tile& tile = memory.tile;
  const int i = static_cast<int>(threadIdx.x) % kWarp, size = job.size();
  const Window<T> window = memory.windows[i];
  const bool near = window.reach == Reach::kNear;
  const Corners<T> corners = corners_of(window);
  const T* values = job.grad + job.values_at(tile.b, near ? spot_of(job, tile.number, i).pixel : 0, tile.level);
  for (int column = static_cast<int>(threadIdx.x) / kWarp; column < columns; column += kTileWarps) {
    const int dx = tile.first + column;
    const bool has_left = near && dx > 0, has_right = near && dx < size;
    const T* right = values + dx * size * job.pixels;
    const T* left = right - size * job.pixels;
    T* taps = memory.taps + i * tile.stride + column * job.side();
    T left_above = 0, right_above = 0;  // the values of the row before
    for (int dy = 0; dy <= size; ++dy) {
      const T left_here = has_left && dy < size ? left[dy * job.pixels] : T(0);
      const T right_here = has_right && dy < size ? right[dy * job.pixels] : T(0);
      taps[dy] = corners.w11 * left_above + corners.w10 * left_here + corners.w01 * right_above +
                 corners.w00 * right_here;
      left_above = left_here;
      right_above = right_here;
    }
  }
}

// What belongs to the pixels of a tile, a level and a part of the windows.
template <class T>
__global__ void __launch_bounds__(kTileThreads, std::is_same_v<T, double> ? 2 : 4) pixel_gradients(GradientJob<T> job) {
  TileMemory<T>& memory = *shared_memory<TileMemory<T>>();
  const int64_t each = job.items_in_hand * job.tiles_in_hand;
  for (int64_t index = blockIdx.x; index < job.levels * job.parts * each; index += gridDim.x) {
    const int part = static_cast<int>(index / each) % job.parts, level = static_cast<int>(index / each) / job.parts;
    const int64_t tile = index % job.tiles_in_hand, item = index % each / job.tiles_in_hand;
    take_tile(job, job.item + item, job.first_tile + tile, level, part, memory);
    if (job.centre_sums != nullptr) {
      make_taps(job, memory);
      sum_centres(job, index, memory);
      __syncthreads();  // the taps have been read
    }
    // The last column of taps belongs to the next part, if there is one.
    const int columns = memory.tile.columns - (part + 1 < job.parts ? 1 : 0), count = columns * job.side();
    make_tap_gradients(job, columns, memory);
    __syncthreads();
    T* kept = job.kept + job.row(item, level, tile) * kPixels * job.taps() + memory.tile.first * job.side();
    for (int k = static_cast<int>(threadIdx.x); k < kPixels * count; k += kTileThreads) {
      kept[k / count * job.taps() + k % count] = memory.taps[k / count * memory.tile.stride + k % count];
    }
    __syncthreads();  // the tile has been read
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
  const int64_t pixel_bytes = job.levels * (taps * int64_t{sizeof(T)} + int64_t{sizeof(Origin)}) + centres * int64_t{sizeof(T)};
  const int64_t tile_bytes = kPixels * pixel_bytes + job.levels * int64_t{sizeof(Box)};
  job.tiles_in_hand = job.tiles;
  plan_slices(job);
  const int64_t item_bytes = std::max<int64_t>(1, job.tiles * tile_bytes + slice_values(job, false) * int64_t{sizeof(T)});
  job.items_in_hand = std::min(job.items, std::max<int64_t>(1, kWorkspace / item_bytes));
  if (item_bytes > kWorkspace) job.tiles_in_hand = std::min(job.tiles, std::max<int64_t>(1, kWorkspace / tile_bytes));
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
  if (coords_needed) job.centre_sums = static_cast<T*>(take(job.items_in_hand * job.tiles_in_hand * kPixels * centres, dtype));
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
  call.launch(list_windows<T>, blocks_for(tiles * job.levels, kTileWarps), kTileThreads, 0, job);
  call.launch(pixel_gradients<T>, blocks_for(tiles * job.levels * job.parts, 1), kTileThreads, tile_bytes<T>(job), job);
  if (job.centre_sums != nullptr) call.launch(add_centres<T>, blocks_for(tiles * kPixels * 2), kThreads, 0, job);
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
  check_correlation_lookup(f0, f1_levels, coords, radius);
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
