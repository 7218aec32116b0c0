// Look-ups on demand: products of features are made where windows ask for them.
//
// A product of C channels is 2 C operations on 2 C values: what decides is how often a value that was loaded is used.
// A tile of pixels has windows that overlap, since flow is smooth. So the cells of the map are taken four at a time,
// 2 x 2, each group for all pixels of the tile that have a tap in it (found from two bit masks), and small dense
// products of 4 cells and a few pixels are made in registers. It holds for scattered windows too: groups then serve
// fewer pixels. The gradients go the same way, f1's in tasks that own channels, so that no sum depends on threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <tuple>
#include <type_traits>

#include "checks.h"
#include "cpu/dispatch.h"
#include "cpu/lookup.h"
#include "sampling.h"
#include "tensors.h"

namespace flowfuse {
namespace {

using torch::headeronly::BFloat16;
using torch::stable::parallel_for;

constexpr int kMostCells = 512;                    // rows or columns of a footprint
constexpr int kMostEmpty = 4;                      // cells of a footprint for each tap in it
constexpr int64_t kWorkspace = int64_t{16} << 20;  // bytes of tap gradients held at a time
constexpr int64_t kChannelBytes = 64;              // channels are padded to whole vectors of every variant

template <class T, class F>
struct FeatureLevel {
  const F* f1;  // [B, rows, columns, channels]
  T* grad;
  int64_t batch_stride, rows, columns;
};

// Features F are float, double or BFloat16, sums T are float or double.
template <class T, class F>
struct FeatureLookup : Lookup<T> {
  FeatureLevel<T, F> maps[kMaxLevels];
  const F* f0;  // [B, height, width, channels]
  T* grad_f0;
  const F* zeros;  // [channels]: features outside the map
  int64_t f0_stride, channels;
  T scale;
};

// The cells that hold taps of some pixels of a tile. Pixel i has a tap in row `top + r` where bit i of down[r] is set,
// in column `left + c` where that of across[c] is.
struct Footprint {
  int64_t top, left;
  int rows, columns;
  uint64_t down[kMostCells + 1], across[kMostCells + 1];  // one more, empty: groups begin at every other cell
};

// Of the pixels [first, last) of a tile; false where it would have too many empty cells.
template <class T>
FLOWFUSE_INLINE bool take_footprint(const Tile<T>& tile, int radius, int64_t rows, int64_t columns, int first,
                                    int last, Footprint& cells) {
  int64_t top = rows, bottom = 0, left = columns, right = 0, taps = 0;
  for (int i = first; i < last; ++i) {
    if (!tile.has(i)) continue;
    const Window<T>& window = tile.windows[i];
    const TapRange range = taps_inside(window, radius, rows, columns);
    if (range.x0 >= range.x1 || range.y0 >= range.y1) continue;
    taps += (range.x1 - range.x0) * (range.y1 - range.y0);
    if (window.y + range.y0 < top) top = window.y + range.y0;
    if (window.y + range.y1 > bottom) bottom = window.y + range.y1;
    if (window.x + range.x0 < left) left = window.x + range.x0;
    if (window.x + range.x1 > right) right = window.x + range.x1;
  }
  cells.rows = 0;
  if (taps == 0) return true;
  if (bottom - top > kMostCells || right - left > kMostCells) return false;
  if ((bottom - top) * (right - left) > kMostEmpty * taps) return false;
  cells.top = top;
  cells.left = left;
  cells.rows = static_cast<int>(bottom - top);
  cells.columns = static_cast<int>(right - left);
  for (int r = 0; r <= cells.rows; ++r) cells.down[r] = 0;
  for (int c = 0; c <= cells.columns; ++c) cells.across[c] = 0;
  for (int i = first; i < last; ++i) {
    if (!tile.has(i)) continue;
    const Window<T>& window = tile.windows[i];
    const TapRange range = taps_inside(window, radius, rows, columns);
    if (range.x0 >= range.x1 || range.y0 >= range.y1) continue;
    const uint64_t bit = uint64_t{1} << i;
    for (int dy = range.y0; dy < range.y1; ++dy) cells.down[window.y + dy - top] |= bit;
    for (int dx = range.x0; dx < range.x1; ++dx) cells.across[window.x + dx - left] |= bit;
  }
  return true;
}

// Calls visit(y, x, pixels) for the groups of cells (y, x), (y, x + 1), (y + 1, x), (y + 1, x + 1) of a level in which
// some pixels, bits of a mask, have a tap. Pixels whose windows lie far apart are taken apart.
template <class T, class F, class Visit>
FLOWFUSE_INLINE void visit_groups(const FeatureLookup<T, F>& job, const Tile<T>& tile, int level, const Visit& visit) {
  const FeatureLevel<T, F>& map = job.maps[level];
  Footprint cells;
  int first[8] = {0}, last[8] = {kTilePixels};  // halved at most six times
  for (int waiting = 1; waiting > 0;) {
    const int begin = first[--waiting], end = last[waiting];
    if (!take_footprint(tile, job.radius, map.rows, map.columns, begin, end, cells)) {
      const int middle = (begin + end) / 2;
      first[waiting] = middle;
      last[waiting++] = end;
      first[waiting] = begin;
      last[waiting++] = middle;
      continue;
    }
    for (int r = 0; r < cells.rows; r += 2) {
      for (int c = 0; c < cells.columns; c += 2) {
        const uint64_t pixels = (cells.down[r] | cells.down[r + 1]) & (cells.across[c] | cells.across[c + 1]);
        if (pixels != 0) visit(cells.top + r, cells.left + c, pixels);
      }
    }
  }
}

// Of the four cells of a group: their place among the cells of a map, or -1 outside of it.
template <class T, class F>
FLOWFUSE_INLINE int64_t cell_of_group(const FeatureLevel<T, F>& map, int64_t y, int64_t x, int k) {
  const int64_t row = y + k / 2, column = x + k % 2;
  return row < map.rows && column < map.columns ? row * map.columns + column : -1;
}

template <class T, class F>
FLOWFUSE_INLINE void take_cells(const FeatureLookup<T, F>& job, const Tile<T>& tile, int level, int64_t y, int64_t x,
                                const F** cells) {
  const FeatureLevel<T, F>& map = job.maps[level];
  for (int k = 0; k < 4; ++k) {
    const int64_t cell = cell_of_group(map, y, x, k);
    cells[k] = cell < 0 ? job.zeros : map.f1 + tile.b * map.batch_stride + cell * job.channels;
  }
}

// Where the pixels of a tile have their taps and features, for loops that should not work it out again.
struct Places {
  int64_t taps[kTilePixels];      // where the tap at cell (0, 0) of the level would lie among the blocks of the tile
  int64_t features[kTilePixels];  // in the feature map of an item
};

template <class T, class F>
FLOWFUSE_INLINE void take_places(const FeatureLookup<T, F>& job, const Tile<T>& tile, Places& places) {
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const Window<T>& window = tile.windows[i];
    places.taps[i] = i * job.block() + job.first_tap() - window.y * job.stride() - window.x;
    places.features[i] = tile.pixel(job, i) * job.channels;
  }
}

template <class V, class T>
FLOWFUSE_INLINE void multiply_add(const T*, const V& a, const V& b, V& sum) {
  sum += a * b;
}

#if FLOWFUSE_BFLOAT16_PRODUCTS
// Adds the products of pairs of bfloat16 to float sums; only under avx512_bf16. (The instruction takes denormals as 0.)
template <class V>
FLOWFUSE_INLINE void multiply_add(const BFloat16*, const V& a, const V& b, V& sum) {
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(a), "v"(b));
}
#endif

// Products of the features at four cells and at the pixels of a mask, into the blocks of those pixels, `at` behind the
// places of their taps. What lies outside the map and on the border of a block afterwards has no meaning.
template <int kBytes, class T, class F>
FLOWFUSE_INLINE void multiply_group(const FeatureLookup<T, F>& job, const F* f0, const Places& places,
                                    const F* const* cells, int64_t at, uint64_t pixels, T* taps) {
  constexpr int kTogether = kBytes == 64 ? 4 : 2;  // pixels: with their sums the registers are full
  constexpr int kSums = 4 * kTogether, kAll = kLanes<T, kBytes>;
  constexpr int kStep = kBytes / static_cast<int>(sizeof(F));
  using V = Vector<T, kBytes>;
  const int64_t channels = job.channels;
  const int stride = job.stride();
  while (pixels != 0) {
    int pixel[kTogether];
    const F* features[kTogether];
    for (int j = 0; j < kTogether; ++j) {  // the last one again where there are no more
      pixel[j] = pixels != 0 ? __builtin_ctzll(pixels) : pixel[j - 1];
      pixels &= pixels - 1;
      features[j] = f0 + places.features[pixel[j]];
    }
    V sums[kSums] = {};
    for (int64_t c = 0; c < channels; c += kStep) {
      V cell[4];
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) load(cells[k] + c, cell[k]);
#pragma GCC unroll 4
      for (int j = 0; j < kTogether; ++j) {
        V feature;
        load(features[j] + c, feature);
#pragma GCC unroll 4
        for (int k = 0; k < 4; ++k) multiply_add(cells[k], feature, cell[k], sums[4 * j + k]);
      }
    }
    alignas(64) T values[kSums];
#pragma GCC unroll 8
    for (int i = 0; i < kSums; i += kAll) {
      V totals;
      lane_sums<T, kBytes>(sums + i, totals);
      totals *= job.scale;
      store(totals, values + i);
    }
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) {
      T* target = taps + (places.taps[pixel[j]] + at);
      target[0] = values[4 * j];
      target[1] = values[4 * j + 1];
      target[stride] = values[4 * j + 2];
      target[stride + 1] = values[4 * j + 3];
    }
  }
}

// Taps of a tile, of which the windows are those of the level.
template <int kBytes, class T, class F>
FLOWFUSE_INLINE void make_taps(const FeatureLookup<T, F>& job, const Tile<T>& tile, int level, T* taps) {
  const FeatureLevel<T, F>& map = job.maps[level];
  const F* f0 = job.f0 + tile.b * job.f0_stride;
  Places places;
  take_places(job, tile, places);
  visit_groups(job, tile, level, [&](int64_t y, int64_t x, uint64_t pixels) FLOWFUSE_INLINE_LAMBDA {
    const F* cells[4];
    take_cells(job, tile, level, y, x, cells);
    multiply_group<kBytes>(job, f0, places, cells, y * job.stride() + x, pixels, taps);
  });
  clear_outside(job, tile, map.rows, map.columns, taps);
}

template <int kBytes, class T, class F>
FLOWFUSE_INLINE void tile_forward(const FeatureLookup<T, F>& job, int64_t index, T* taps) {
  Tile<T> tile;
  take_tile(job, index, tile);
  for (int level = 0; level < job.levels; ++level) {
    take_windows(job, level, job.maps[level].rows, job.maps[level].columns, tile);
    expect_values(job, tile, level);
    make_taps<kBytes>(job, tile, level, taps);
    write_values<kBytes>(job, tile, level, taps);
  }
}

// The pixels of a group, taken out of their mask: the gradients of their taps at the four cells, which lie scattered
// and are used for every pass over channels, and where their features lie.
template <class T>
struct Members {
  int count;
  T factors[kTilePixels][4];
  int64_t features[kTilePixels];
};

template <class T>
FLOWFUSE_INLINE void take_members(const Places& places, const T* grad_taps, int64_t at, int stride, uint64_t pixels,
                                  Members<T>& members) {
  int count = 0;
  for (; pixels != 0; pixels &= pixels - 1) {
    const int i = __builtin_ctzll(pixels);
    const T *upper = grad_taps + (places.taps[i] + at), *lower = upper + stride;
    members.factors[count][0] = upper[0];
    members.factors[count][1] = upper[1];
    members.factors[count][2] = lower[0];
    members.factors[count][3] = lower[1];
    members.features[count++] = places.features[i];
  }
  members.count = count;
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

// Adds what the taps at four cells give to the gradients of f0 at the members.
template <int kBytes, int kVectors, class T>
FLOWFUSE_INLINE void add_to_f0(const T* const* cells, const Members<T>& members, T* grad) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  V cell[4][kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) load(cells[k] + v * kAll, cell[k][v]);
  }
  for (int m = 0; m < members.count; ++m) {
    const T* factor = members.factors[m];
    T* target = grad + members.features[m];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V sum;
      load(target + v * kAll, sum);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum += factor[k] * cell[k][v];
      store(sum, target + v * kAll);
    }
  }
}

// Adds what the members give to the gradients of f1 at four cells.
template <int kBytes, int kVectors, class T>
FLOWFUSE_INLINE void add_to_f1(const T* f0, const Members<T>& members, T* const* grads) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  V sum[4][kVectors];
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) load(grads[k] + v * kAll, sum[k][v]);
  }
  for (int m = 0; m < members.count; ++m) {
    const T* factor = members.factors[m];
    const T* features = f0 + members.features[m];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) {
      V feature;
      load(features + v * kAll, feature);
#pragma GCC unroll 4
      for (int k = 0; k < 4; ++k) sum[k][v] += factor[k] * feature;
    }
  }
#pragma GCC unroll 4
  for (int k = 0; k < 4; ++k) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(sum[k][v], grads[k] + v * kAll);
  }
}

// Gradients that belong to the pixels of a tile: those of f0 and of the coordinates. The gradients of the taps are
// kept [levels, kTilePixels, block] for f1's. workspace: blocks of a tile, and one more.
template <int kBytes, class T>
FLOWFUSE_INLINE void tile_backward(const FeatureLookup<T, T>& job, int64_t index, T* kept, T* workspace) {
  T* taps = workspace;
  T* values = taps + kTilePixels * job.block();
  T gx[kTilePixels] = {}, gy[kTilePixels] = {};
  Places places;
  Members<T> members;
  Tile<T> tile;
  take_tile(job, index, tile);
  T* grad_f0 = job.grad_f0 + tile.b * job.pixels() * job.channels;
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    T* grad = grad_f0 + tile.pixel(job, i) * job.channels;
    for (int64_t c = 0; c < job.channels; ++c) grad[c] = T(0);
  }
  for (int level = 0; level < job.levels; ++level) {
    take_windows(job, level, job.maps[level].rows, job.maps[level].columns, tile);
    if (job.grad_coords != nullptr) make_taps<kBytes>(job, tile, level, taps);
    T* grad_taps = kept + level * kTilePixels * job.block();
    for (int i = 0; i < kTilePixels; ++i) {
      if (!tile.has(i)) continue;
      if (job.grad_coords != nullptr) add_coordinate_gradient(job, tile, level, i, taps, gx[i], gy[i]);
      tap_gradients(job, tile, level, i, job.scale, values, grad_taps + i * job.block());
    }
    take_places(job, tile, places);
    visit_groups(job, tile, level, [&](int64_t y, int64_t x, uint64_t pixels) FLOWFUSE_INLINE_LAMBDA {
      const T* cells[4];
      take_cells(job, tile, level, y, x, cells);
      take_members(places, grad_taps, y * job.stride() + x, job.stride(), pixels, members);
      in_passes<kBytes, T>(0, job.channels, [&](auto vectors, int64_t channel) FLOWFUSE_INLINE_LAMBDA {
        const T* at[4] = {cells[0] + channel, cells[1] + channel, cells[2] + channel, cells[3] + channel};
        add_to_f0<kBytes, decltype(vectors)::value>(at, members, grad_f0 + channel);
      });
    });
  }
  write_coordinate_gradients(job, tile, gx, gy);
}

// The gradient of f1's level in the channels [first, last): adds what tile `index` gives. `unused` [channels] receives
// what falls outside the map.
template <int kBytes, class T>
FLOWFUSE_INLINE void tile_to_f1(const FeatureLookup<T, T>& job, int64_t index, int level, int64_t first, int64_t last,
                                const T* grad_taps, T* unused) {
  const FeatureLevel<T, T>& map = job.maps[level];
  Places places;
  Members<T> members;
  Tile<T> tile;
  take_tile(job, index, tile);
  take_windows(job, level, map.rows, map.columns, tile);
  take_places(job, tile, places);
  const T* f0 = job.f0 + tile.b * job.f0_stride;
  visit_groups(job, tile, level, [&](int64_t y, int64_t x, uint64_t pixels) FLOWFUSE_INLINE_LAMBDA {
    T* grads[4];
    for (int k = 0; k < 4; ++k) {
      const int64_t cell = cell_of_group(map, y, x, k);
      grads[k] = cell < 0 ? unused : map.grad + (tile.b * map.rows * map.columns + cell) * job.channels;
    }
    take_members(places, grad_taps, y * job.stride() + x, job.stride(), pixels, members);
    in_passes<kBytes, T>(first, last, [&](auto vectors, int64_t channel) FLOWFUSE_INLINE_LAMBDA {
      T* at[4] = {grads[0] + channel, grads[1] + channel, grads[2] + channel, grads[3] + channel};
      add_to_f1<kBytes, decltype(vectors)::value>(f0 + channel, members, at);
    });
  });
}

// The tasks of f1's gradient: each owns some channels of a level of an item, and goes through the tiles in their order.
template <class T>
struct GradientTasks {
  int64_t item, items, chunk, chunks;

  // Of the items that tiles [begin, end) belong to.
  GradientTasks(const FeatureLookup<T, T>& job, int64_t begin, int64_t end) {
    constexpr int64_t kLeast = 64;  // channels: four vectors of float32
    item = begin / job.tiles_of_item();
    items = (end - 1) / job.tiles_of_item() + 1 - item;
    const int64_t wanted = 2 * static_cast<int64_t>(torch::stable::get_num_threads());
    chunks = std::max<int64_t>(1, std::min(wanted / (items * job.levels), job.channels / kLeast));
    chunk = rounded_up((job.channels + chunks - 1) / chunks, kLeast);
    chunks = (job.channels + chunk - 1) / chunk;
  }
  int64_t count(const FeatureLookup<T, T>& job) const { return items * job.levels * chunks; }
};

template <int kBytes, class T>
FLOWFUSE_INLINE void run_gradient_tasks(const FeatureLookup<T, T>& job, const GradientTasks<T>& tasks, int64_t first,
                                        int64_t last, int64_t begin, int64_t end, const T* kept, T* unused) {
  const int64_t tiles = job.tiles_of_item(), kept_of_level = kTilePixels * job.block();
  for (int64_t task = first; task < last; ++task) {
    const int64_t item = tasks.item + task / (tasks.chunks * job.levels);
    const int level = static_cast<int>(task / tasks.chunks % job.levels);
    const int64_t channel = task % tasks.chunks * tasks.chunk;
    const int64_t stop = channel + tasks.chunk < job.channels ? channel + tasks.chunk : job.channels;
    const int64_t from = item * tiles > begin ? item * tiles : begin;
    const int64_t to = (item + 1) * tiles < end ? (item + 1) * tiles : end;
    for (int64_t index = from; index < to; ++index) {
      const T* grad_taps = kept + ((index - begin) * job.levels + level) * kept_of_level;
      tile_to_f1<kBytes>(job, index, level, channel, stop, grad_taps, unused + task * job.channels);
    }
  }
}

template <class T>
void run_backward(const char* op, const FeatureLookup<T, T>& job, const Tensor& like) {
  const int64_t kept_of_tile = int64_t{job.levels} * kTilePixels * job.block();
  const int64_t group =
      std::min(job.tiles(), std::max<int64_t>(1, kWorkspace / (kept_of_tile * int64_t{sizeof(T)})));
  const Tensor memory = allocate(op, like, {group, kept_of_tile}, like.scalar_type());
  const Workers workers(op, like, group, (kTilePixels + 1) * job.block());
  T* kept = mutable_data<T>(memory);
  for (int64_t begin = 0; begin < job.tiles(); begin += group) {
    const int64_t end = std::min(begin + group, job.tiles());
    workers.run(begin, end, [&](int64_t first, int64_t last, void* workspace) {
      FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                            tile_backward<kVectorBytes>(job, index, kept + (index - begin) * kept_of_tile,
                                                        static_cast<T*>(workspace)))
    });
    const GradientTasks<T> tasks(job, begin, end);
    Tensor unused = allocate(op, like, {tasks.count(job), job.channels}, like.scalar_type());
    torch::stable::zero_(unused);
    T* outside = mutable_data<T>(unused);
    parallel_for(0, tasks.count(job), 1, [&](int64_t first, int64_t last) {
      FLOWFUSE_VARIANTS(run_gradient_tasks<kVectorBytes>(job, tasks, first, last, begin, end,
                                                         static_cast<const T*>(kept), outside))
    });
  }
}

// Copies pixels of channels-last maps to others with more or fewer channels; those that are new are 0.
void copy_channels(const Tensor& from, const Tensor& to) {
  const int64_t size = static_cast<int64_t>(sizeof_dtype(from.scalar_type()));
  const int64_t from_bytes = from.size(1) * size, to_bytes = to.size(1) * size;
  const int64_t kept = std::min(from_bytes, to_bytes), pixels = from.size(0) * from.size(2) * from.size(3);
  const char* source = static_cast<const char*>(from.const_data_ptr());
  char* target = static_cast<char*>(to.mutable_data_ptr());
  parallel_for(0, pixels, 256, [&](int64_t first, int64_t last) {
    for (int64_t pixel = first; pixel < last; ++pixel) {
      std::memcpy(target + pixel * to_bytes, source + pixel * from_bytes, static_cast<size_t>(kept));
      std::memset(target + pixel * to_bytes + kept, 0, static_cast<size_t>(to_bytes - kept));
    }
  });
}

// Packed features with zeros up to `channels`.
Features in_whole_vectors(const char* op, const Features& map, int64_t channels) {
  if (map.tensor.size(1) == channels) return map;
  const Tensor wider = allocate(op, map.tensor, {map.tensor.size(0), channels, map.rows, map.columns},
                                map.tensor.scalar_type(), MemoryFormat::ChannelsLast);
  copy_channels(map.tensor, wider);
  return {wider, map.batch_stride == 0 ? 0 : channels * map.rows * map.columns, map.rows, map.columns};
}

// A job with the tensors that it points into.
template <class T, class F>
struct PreparedLookup {
  FeatureLookup<T, F> job{};
  std::vector<Features> held;
  Tensor zeros;

  PreparedLookup(const char* op, const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords,
                 int64_t radius, ScalarType dtype) {
    set_coords(job, coords, f1_levels.size(), radius);
    constexpr int64_t multiple = kChannelBytes / int64_t{sizeof(F)};
    job.channels = rounded_up(f0.size(1), multiple);
    job.scale = T(1) / std::sqrt(static_cast<T>(f0.size(1)));
    held.push_back(in_whole_vectors(op, packed(f0, dtype, MemoryFormat::ChannelsLast), job.channels));
    job.f0 = data<F>(held[0].tensor);
    job.f0_stride = held[0].batch_stride;
    zeros = allocate(op, f0, {job.channels}, dtype);
    torch::stable::zero_(zeros);
    job.zeros = data<F>(zeros);
    for (size_t level = 0; level < f1_levels.size(); ++level) {
      held.push_back(
          in_whole_vectors(op, packed(f1_levels[level], dtype, MemoryFormat::ChannelsLast), job.channels));
      const Features& f1 = held.back();
      job.maps[level] = {data<F>(f1.tensor), nullptr, f1.batch_stride, f1.rows, f1.columns};
    }
  }
};

template <class T, class F>
Tensor forward(const Tensor& f0, const std::vector<Tensor>& f1_levels, const Tensor& coords, int64_t radius,
               ScalarType dtype) {
  const char* op = "correlation_lookup";
  PreparedLookup<T, F> prepared(op, f0, f1_levels, coords, radius, dtype);
  FeatureLookup<T, F>& job = prepared.job;
  const Tensor output =
      allocate(op, f0, windows_shape(coords, f1_levels.size(), radius), sum_dtype(f0.scalar_type()));
  if (output.numel() == 0) return output;
  job.output = mutable_data<T>(output);
  const Workers workers(op, output, job.tiles(), kTilePixels * job.block() + kOverread);
  workers.run(0, job.tiles(), [&](int64_t first, int64_t last, void* workspace) {
    T* taps = static_cast<T*>(workspace);
    if constexpr (std::is_same_v<F, BFloat16>) {
#if FLOWFUSE_BFLOAT16_PRODUCTS
      [&]() FLOWFUSE_TARGET_AVX512 {
        for (int64_t index = first; index < last; ++index) tile_forward<64>(job, index, taps);
      }();
#endif
    } else {
      FLOWFUSE_VARIANTS(for (int64_t index = first; index < last; ++index)
                            tile_forward<kVectorBytes>(job, index, taps))
    }
  });
  return output;
}

Tensor correlation_lookup(Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius) {
  check_correlation_lookup(f0, f1_levels, coords, radius);
  const Tensor exact = converted(coords, ScalarType::Double);
  const ScalarType dtype = f0.scalar_type();
  if (dtype == ScalarType::Double) return forward<double, double>(f0, f1_levels, exact, radius, dtype);
  [[maybe_unused]] const bool all_bfloat16 = dtype == ScalarType::BFloat16 &&
                            std::all_of(f1_levels.begin(), f1_levels.end(),
                                        [&](const Tensor& level) { return level.scalar_type() == dtype; });
#if FLOWFUSE_BFLOAT16_PRODUCTS
  if (all_bfloat16 && cpu_capability() == CpuCapability::kAvx512Bf16) {
    return forward<float, BFloat16>(f0, f1_levels, exact, radius, dtype);
  }
#endif
  return forward<float, float>(f0, f1_levels, exact, radius, ScalarType::Float);
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
  FeatureLookup<T, T>& job = prepared.job;
  job.grad = data<T>(grad);
  const auto empty_gradient = [&](const Tensor& map) {
    return allocate(op, map, {map.size(0), job.channels, map.size(2), map.size(3)}, dtype, MemoryFormat::ChannelsLast);
  };
  const Tensor grad_f0 = empty_gradient(f0);
  job.grad_f0 = mutable_data<T>(grad_f0);
  std::vector<Tensor> grads;
  for (size_t level = 0; level < f1_levels.size(); ++level) {
    grads.push_back(empty_gradient(f1_levels[level]));
    torch::stable::zero_(grads.back());
    job.maps[level].grad = mutable_data<T>(grads.back());
  }
  const Tensor grad_coords = empty_coordinate_gradient(op, grad, coords, coords_needed, job);
  if (grad.numel() > 0) run_backward(op, job, grad);
  for (size_t level = 0; level < grads.size(); ++level) grads[level] = finished(op, grads[level], f1_levels[level]);
  return {finished(op, grad_f0, f0), grads, grad_coords};
}

std::tuple<Tensor, std::vector<Tensor>, Tensor> correlation_lookup_backward(
    Tensor grad, Tensor f0, std::vector<Tensor> f1_levels, Tensor coords, int64_t radius, bool coords_needed) {
  check_correlation_lookup(f0, f1_levels, coords, radius);
  const ScalarType dtype = sum_dtype(f0.scalar_type());
  check_gradient("correlation_lookup_backward", grad, windows_shape(coords, f1_levels.size(), radius), dtype, "f0",
                 f0);
  const Tensor exact = converted(coords, ScalarType::Double);
  const Tensor g = torch::stable::contiguous(grad);
  const auto run = dtype == ScalarType::Double ? backward<double> : backward<float>;
  const auto [grad_f0, grads, grad_coords] = run(g, f0, f1_levels, exact, radius, coords_needed);
  return {grad_f0, grads, torch::stable::to(grad_coords, coords.scalar_type())};
}

}  // namespace
}  // namespace flowfuse

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) {
  m.impl("correlation_lookup", TORCH_BOX(&flowfuse::correlation_lookup));
  m.impl("correlation_lookup_backward", TORCH_BOX(&flowfuse::correlation_lookup_backward));
}
