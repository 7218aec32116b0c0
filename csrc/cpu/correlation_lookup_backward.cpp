#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <tuple>
#include <type_traits>

#include "cpu/feature_lookup.h"
#include "operators/correlation_lookup.h"

namespace flowfuse::cpu {
namespace {

constexpr int64_t kWorkspace = int64_t{16} << 20;  // bytes of tap gradients held at a time
// Channels of a tile's pixels that are gone through at a time, copied to lie side by side: in place they would not stay
// in the first-level cache, where features of 2^n bytes compete for a few sets.
constexpr int kChunk = 64;

// Four cells (y, x), (y, x + 1), ... of a level and the pixels of a tile that have a tap in them.
struct CellGroup {
  int64_t y, x;
  uint64_t pixels;
};

// The groups of a tile at a level: taken out of the windows once, gone through for some channels at a time.
template <class T>
struct Groups {
  CellGroup* groups;
  int count;
  Places places;
  int down;  // from a tap to the one below

  // A window of 2 r + 2 taps along an axis lies in r + 2 groups at most.
  static int64_t most(int radius) { return int64_t{kTilePixels} * (radius + 2) * (radius + 2); }
};

template <class T>
FLOWFUSE_INLINE void list_groups(const FeatureLookup<T, T>& params, const PixelTile<T>& tile, int level,
                                 Groups<T>& list) {
  list.down = params.stride() * kTileColumns;
  compute_places(params, tile, list.places);
  list.count = 0;
  visit_groups(params, tile, level, [&](int64_t y, int64_t x, uint64_t pixels) FLOWFUSE_INLINE_LAMBDA {
    list.groups[list.count++] = {y, x, pixels};
  });
}

// Calls visit(pixel, gradients of its taps at the four cells of a group) for the pixels of the group.
template <class T, class Visit>
FLOWFUSE_INLINE void for_pixels(const Groups<T>& list, const CellGroup& group, const T* grad_taps, const Visit& visit) {
  const T* at = grad_taps + group.y * list.down + group.x * kTileColumns;
  for (uint64_t pixels = group.pixels; pixels != 0; pixels &= pixels - 1) {
    const int i = __builtin_ctzll(pixels);
    const T *upper = at + list.places.taps[i], *lower = upper + list.down;
    const T factors[4] = {upper[0], upper[kTileColumns], lower[0], lower[kTileColumns]};
    visit(i, factors);
  }
}

// Calls pass(constant number of vectors, first channel) for stretches that make up the channels [first, last).
template <int kBytes, class T, class Pass>
FLOWFUSE_INLINE void in_passes(int64_t first, int64_t last, const Pass& pass) {
  constexpr int kVectors = kBytes == 64 ? 4 : 2;  // of each cell: the registers are full
  constexpr int kAll = kLanes<T, kBytes>;
  for (; first + kVectors * kAll <= last; first += kVectors * kAll) {
    pass(std::integral_constant<int, kVectors>{}, first);
  }
  for (; first < last; first += kAll) pass(std::integral_constant<int, 1>{}, first);
}

// Some channels of the four cells of a group.
template <class T, int kBytes, int kVectors>
FLOWFUSE_INLINE void load_group(const T* const* from, Vector<T, kBytes> (&to)[4][kVectors]) {
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) load(from[k] + v * kLanes<T, kBytes>, to[k][v]);
  }
}

// Adds what the taps at four cells give to the gradients `sums` [kTilePixels][kChunk] of f0.
template <int kBytes, int kVectors, class T>
FLOWFUSE_INLINE void add_to_f0(const T* const* cells, const Groups<T>& list, const CellGroup& group, const T* grad_taps,
                               T* sums) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  V cell[4][kVectors];
  load_group<T, kBytes>(cells, cell);
  for_pixels(list, group, grad_taps, [&](int i, const T* factors) FLOWFUSE_INLINE_LAMBDA {
    T* target = sums + i * kChunk;
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V sum;
      load(target + v * kAll, sum);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum += factors[k] * cell[k][v];
      store(sum, target + v * kAll);
    }
  });
}

// Adds what the pixels of a group give, their `features` [kTilePixels][kChunk], to the gradients of f1 at four cells.
template <int kBytes, int kVectors, class T>
FLOWFUSE_INLINE void add_to_f1(const T* features, const Groups<T>& list, const CellGroup& group, const T* grad_taps,
                               T* const* grads) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  V sum[4][kVectors];
  load_group<T, kBytes>(grads, sum);
  for_pixels(list, group, grad_taps, [&](int i, const T* factors) FLOWFUSE_INLINE_LAMBDA {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V feature;
      load(features + i * kChunk + v * kAll, feature);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[k][v] += factors[k] * feature;
    }
  });
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sum[k][v], grads[k] + v * kAll);
  }
}

// What a worker has: blocks of a tile, those of a row of it, features of its pixels, groups.
template <class T>
struct BackwardWorkspace {
  T *taps, *values, *features;
  Groups<T> list;

  static int64_t count(const FeatureLookup<T, T>& params) {
    return (kTilePixels + kTileColumns) * params.block() + kTilePixels * kChunk +
           Groups<T>::most(params.radius) * int64_t{sizeof(CellGroup)} / int64_t{sizeof(T)};
  }
  BackwardWorkspace(const FeatureLookup<T, T>& params, void* memory)
      : taps(static_cast<T*>(memory)),
        values(taps + kTilePixels * params.block()),
        features(values + kTileColumns * params.block()),
        list{reinterpret_cast<CellGroup*>(features + kTilePixels * kChunk), 0, {}, 0} {}
};

// Gradients that belong to the pixels of a tile: those of f0 and of the coordinates. The gradients of the taps are
// kept [levels, kTilePixels, block] for f1's.
template <int kBytes, class T>
FLOWFUSE_INLINE void tile_backward(const FeatureLookup<T, T>& params, int64_t index, T* kept,
                                   BackwardWorkspace<T>& workspace) {
  T gx[kTilePixels] = {}, gy[kTilePixels] = {};
  PixelTile<T> tile;
  load_tile(params, index, tile);
  T* grad_f0 = params.grad_f0 + tile.b * params.pixels() * params.channels;
  for (int level = 0; level < params.levels; ++level) {
    load_windows(params, level, params.maps[level].rows, params.maps[level].columns, tile);
    const bool coords_needed = params.grad_coords != nullptr;
    if (coords_needed) compute_taps<kBytes>(params, tile, level, workspace.taps);
    T* grad_taps = kept + level * kTilePixels * params.block();
    for (int row = 0; row < tile.rows; ++row) {
      const T *taps = workspace.taps, *values = workspace.values;
      read_gradients(params, tile, level, row, workspace.values);
      tap_gradients<kBytes>(params, tile, row, params.scale, values, grad_taps + row * kTileColumns * params.block());
      if (coords_needed) add_coordinate_gradients<kBytes>(params, tile, level, row, taps, values, gx, gy);
    }
    if (level + 1 < params.levels) prefetch_windows<false>(params, tile, level + 1, params.grad);
    list_groups(params, tile, level, workspace.list);
    for (int64_t first = 0; first < params.channels; first += kChunk) {
      const int64_t count = params.channels - first < kChunk ? params.channels - first : kChunk;
      T* sums = workspace.features;
      for (int k = 0; k < kTilePixels * kChunk; ++k) sums[k] = T(0);
      for (int g = 0; g < workspace.list.count; ++g) {
        const CellGroup& group = workspace.list.groups[g];
        const T* cells[4];
        load_cells(params, tile, level, group.y, group.x, cells);
        in_passes<kBytes, T>(first, first + count, [&](auto vectors, int64_t channel) FLOWFUSE_INLINE_LAMBDA {
          const T* at[4] = {cells[0] + channel, cells[1] + channel, cells[2] + channel, cells[3] + channel};
          add_to_f0<kBytes, decltype(vectors)::value>(at, workspace.list, group, grad_taps, sums + channel - first);
        });
      }
      for (int i = 0; i < kTilePixels; ++i) {
        if (!tile.has(i)) continue;
        T* grad = grad_f0 + tile.pixel(params, i) * params.channels + first;
        for (int64_t c = 0; c < count; ++c) {
          const T sum = sums[i * kChunk + c];
          grad[c] = level == 0 ? sum : grad[c] + sum;
        }
      }
    }
  }
  write_coordinate_gradients(params, tile, gx, gy);
}

// The gradient of f1's level in the channels [begin, end): adds what tile `index` gives. `unused` [channels] receives
// what falls outside the map.
template <int kBytes, class T>
FLOWFUSE_INLINE void tile_to_f1(const FeatureLookup<T, T>& params, int64_t index, int level, int64_t begin, int64_t end,
                                const T* grad_taps, T* unused, BackwardWorkspace<T>& workspace) {
  const FeatureLevel<T, T>& map = params.maps[level];
  PixelTile<T> tile;
  load_tile(params, index, tile);
  load_windows(params, level, map.rows, map.columns, tile);
  const T* f0 = params.f0 + tile.b * params.f0_stride;
  T* map_grad = map.grad + tile.b * map.rows * map.columns * params.channels;
  list_groups(params, tile, level, workspace.list);
  for (int64_t first = begin; first < end; first += kChunk) {
    const int64_t count = end - first < kChunk ? end - first : kChunk;
    T* features = workspace.features;
    for (int i = 0; i < kTilePixels; ++i) {
      if (!tile.has(i)) continue;
      const T* from = f0 + tile.pixel(params, i) * params.channels + first;
      for (int64_t c = 0; c < count; ++c) features[i * kChunk + c] = from[c];
      for (int64_t c = 0; c < count; c += 64 / int64_t{sizeof(T)}) __builtin_prefetch(from + kChunk + c);
    }
    for (int g = 0; g < workspace.list.count; ++g) {
      const CellGroup& group = workspace.list.groups[g];
      T* grads[4];
      for (int k = 0; k < 4; ++k) {
        const int64_t cell = cell_of_group(map, group.y, group.x, k);
        grads[k] = cell < 0 ? unused : map_grad + cell * params.channels;
      }
      in_passes<kBytes, T>(first, first + count, [&](auto vectors, int64_t channel) FLOWFUSE_INLINE_LAMBDA {
        T* at[4] = {grads[0] + channel, grads[1] + channel, grads[2] + channel, grads[3] + channel};
        add_to_f1<kBytes, decltype(vectors)::value>(features + channel - first, workspace.list, group, grad_taps, at);
      });
    }
  }
}

// The tasks of f1's gradient: each owns some channels of a level of an item, and goes through the tiles in their order.
template <class T>
struct GradientTasks {
  int64_t item, items, chunk, chunks;

  // Of the items that tiles [begin, end) belong to.
  GradientTasks(const FeatureLookup<T, T>& params, int64_t begin, int64_t end) {
    constexpr int64_t kLeast = 64;  // channels: four vectors of float32
    item = begin / params.tiles_of_item();
    items = (end - 1) / params.tiles_of_item() + 1 - item;
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    chunks = std::max<int64_t>(1, std::min(wanted / (items * params.levels), params.channels / kLeast));
    chunk = rounded_up((params.channels + chunks - 1) / chunks, kLeast);
    chunks = (params.channels + chunk - 1) / chunk;
  }
  int64_t count(const FeatureLookup<T, T>& params) const { return items * params.levels * chunks; }
};

template <int kBytes, class T>
FLOWFUSE_INLINE void run_gradient_tasks(const FeatureLookup<T, T>& params, const GradientTasks<T>& tasks, int64_t first,
                                        int64_t last, int64_t begin, int64_t end, const T* kept, T* unused,
                                        BackwardWorkspace<T>& workspace) {
  const int64_t tiles = params.tiles_of_item(), kept_of_level = kTilePixels * params.block();
  for (int64_t task = first; task < last; ++task) {
    const int64_t item = tasks.item + task / (tasks.chunks * params.levels);
    const int level = static_cast<int>(task / tasks.chunks % params.levels);
    const int64_t channel = task % tasks.chunks * tasks.chunk;
    const int64_t stop = channel + tasks.chunk < params.channels ? channel + tasks.chunk : params.channels;
    const int64_t from = item * tiles > begin ? item * tiles : begin;
    const int64_t to = (item + 1) * tiles < end ? (item + 1) * tiles : end;
    for (int64_t index = from; index < to; ++index) {
      const T* grad_taps = kept + ((index - begin) * params.levels + level) * kept_of_level;
      tile_to_f1<kBytes>(params, index, level, channel, stop, grad_taps, unused + task * params.channels, workspace);
    }
  }
}

template <class T>
void run_backward(const char* op, const FeatureLookup<T, T>& params, const Tensor& like) {
  const int64_t kept_of_tile = int64_t{params.levels} * kTilePixels * params.block();
  const int64_t group =
      std::min(params.tiles(), std::max<int64_t>(1, kWorkspace / (kept_of_tile * int64_t{sizeof(T)})));
  const Tensor tap_memory = allocate(op, like, {group, kept_of_tile}, like.scalar_type());
  const Workers workers(op, like, params.tiles(), BackwardWorkspace<T>::count(params));
  T* kept = mutable_data<T>(tap_memory);
  for (int64_t begin = 0; begin < params.tiles(); begin += group) {
    const int64_t end = std::min(begin + group, params.tiles());
    workers.run(begin, end, [&](int64_t first, int64_t last, void* memory) {
      BackwardWorkspace<T> workspace(params, memory);
      FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index) tile_backward<kVectorBytes>(
          params, index, kept + (index - begin) * kept_of_tile, workspace))
    });
    const GradientTasks<T> tasks(params, begin, end);
    Tensor unused = allocate(op, like, {tasks.count(params), params.channels}, like.scalar_type());
    torch::stable::zero_(unused);
    T* outside = mutable_data<T>(unused);
    workers.run(0, tasks.count(params), [&](int64_t first, int64_t last, void* memory) {
      BackwardWorkspace<T> workspace(params, memory);
      FLOWFUSE_VARIANTS(run_gradient_tasks<kVectorBytes>(params, tasks, first, last, begin, end,
                                                         static_cast<const T*>(kept), outside, workspace))
    });
  }
}

// Gradient in a map as its own dtype, without the channels that were added to it.
Tensor finished(const char* op, const Tensor& grad, const Tensor& map) {
  if (grad.size(1) == map.size(1)) return torch::stable::to(grad, map.scalar_type());
  const Tensor narrower = empty_channels_last(op, map, grad.scalar_type());
  copy_channels(grad, narrower);
  return torch::stable::to(narrower, map.scalar_type());
}

template <class T>
std::tuple<Tensor, std::vector<Tensor>, Tensor> backward(const Tensor& grad, const Tensor& f0,
                                                         const std::vector<Tensor>& f1_levels, const Tensor& coords,
                                                         int64_t radius, bool coords_needed) {
  const char* op = "correlation_lookup_backward";
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  PreparedLookup<T, T> prepared(op, f0, f1_levels, coords, radius, dtype);
  FeatureLookup<T, T>& params = prepared.params;
  params.grad = data<T>(grad);
  const auto empty_gradient = [&](const Tensor& map) {
    return allocate(op, map, {map.size(0), params.channels, map.size(2), map.size(3)}, dtype,
                    MemoryFormat::ChannelsLast);
  };
  const Tensor grad_f0 = empty_gradient(f0);
  params.grad_f0 = mutable_data<T>(grad_f0);
  std::vector<Tensor> grads;
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    grads.push_back(empty_gradient(f1_levels[level]));
    torch::stable::zero_(grads.back());
    params.maps[level].grad = mutable_data<T>(grads.back());
  }
  const Tensor grad_coords = empty_coordinate_gradient(op, grad, coords, coords_needed, params);
  if (grad.numel() > 0) run_backward(op, params, grad);
  for (size_t level = 0; level < grads.size(); ++level) grads[level] = finished(op, grads[level], f1_levels[level]);
  return {finished(op, grad_f0, f0), grads, grad_coords};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward(Tensor grad, Tensor f0,
                                                                            std::vector<Tensor> f1_levels,
                                                                            Tensor coords, int64_t radius,
                                                                            bool coords_needed, bool) {
  check_correlation_lookup("correlation_lookup_backward", f0, f1_levels, coords, radius);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  check_gradient("correlation_lookup_backward", grad, windows_shape(coords, f1_levels.size(), radius), dtype, "f0", f0);
  const Tensor exact = converted(coords, ScalarType::Double);
  const Tensor g = torch::stable::contiguous(grad);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  const auto [grad_f0, grads, grad_coords] = run(g, f0, f1_levels, exact, radius, coords_needed);
  return {grad_f0, grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("correlation_lookup_backward", TORCH_BOX(&flowfuse::cpu::correlation_lookup_backward));
}
