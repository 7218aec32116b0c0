// What look-ups in a volume and on demand share. Pixels are taken a tile at a time. The taps of their windows lie in
// blocks, one a pixel, with a border one tap wide around them; rows of taps lie along the map, results along the
// pixels, and small transpositions lie between.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cpu/vector.h"
#include "sampling.h"
#include "tensors.h"

namespace flowfuse {

constexpr int kTileRows = 4, kTileColumns = 16;          // a row of float32 results is a cache line
constexpr int kTilePixels = kTileRows * kTileColumns;    // a bit each of a 64-bit mask
constexpr int kOverread = 64;                            // values behind the blocks of a tile that may be read

// Of B maps of windows around coords.
template <class T>
struct Lookup {
  const double* coords;  // [B, 2, height, width]
  T* output;             // [B, levels * side^2, height, width]
  const T* grad;         // of output
  T* grad_coords;        // null when not asked for
  int64_t batch, height, width;
  int radius, levels;

  FLOWFUSE_INLINE int side() const { return 2 * radius + 1; }
  FLOWFUSE_INLINE int taps() const { return 2 * radius + 2; }  // along an axis
  FLOWFUSE_INLINE int stride() const { return taps() + 2; }    // of the rows of a block
  FLOWFUSE_INLINE int block() const { return stride() * stride(); }
  FLOWFUSE_INLINE int first_tap() const { return stride() + 1; }
  FLOWFUSE_INLINE int64_t pixels() const { return height * width; }
  FLOWFUSE_INLINE int64_t tiles_across() const { return (width + kTileColumns - 1) / kTileColumns; }
  FLOWFUSE_INLINE int64_t tiles_of_item() const {
    return (height + kTileRows - 1) / kTileRows * tiles_across();
  }
  int64_t tiles() const { return batch * tiles_of_item(); }
  FLOWFUSE_INLINE int64_t window_values(int64_t b, int level) const {  // first of [side^2, height, width]
    return (b * levels + level) * side() * side() * pixels();
  }
};

// Pixel i of a tile is in its row i / kTileColumns and column i % kTileColumns.
template <class T>
struct Tile {
  int64_t b, y, x;  // item and first pixel
  int rows, columns;
  Window<T> windows[kTilePixels];  // of a level

  FLOWFUSE_INLINE bool has(int i) const { return i / kTileColumns < rows && i % kTileColumns < columns; }
  FLOWFUSE_INLINE int64_t pixel(const Lookup<T>& job, int i) const {
    return (y + i / kTileColumns) * job.width + x + i % kTileColumns;
  }
};

template <class T>
FLOWFUSE_INLINE void take_tile(const Lookup<T>& job, int64_t index, Tile<T>& tile) {
  const int64_t within = index % job.tiles_of_item();
  tile.b = index / job.tiles_of_item();
  tile.y = within / job.tiles_across() * kTileRows;
  tile.x = within % job.tiles_across() * kTileColumns;
  tile.rows = static_cast<int>(job.height - tile.y < kTileRows ? job.height - tile.y : kTileRows);
  tile.columns = static_cast<int>(job.width - tile.x < kTileColumns ? job.width - tile.x : kTileColumns);
}

template <class T>
FLOWFUSE_INLINE void take_windows(const Lookup<T>& job, int level, int64_t rows, int64_t columns, Tile<T>& tile) {
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const double* at = job.coords + tile.b * 2 * job.pixels() + tile.pixel(job, i);
    tile.windows[i] = window_at<T>(at[0], at[job.pixels()], level, job.radius, rows, columns);
  }
}

// Zeros for the taps outside the map; those inside have been written.
template <class T>
FLOWFUSE_INLINE void clear_outside(const Lookup<T>& job, const Tile<T>& tile, int64_t rows, int64_t columns, T* taps) {
  const int side = job.taps();
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const TapRange range = taps_inside(tile.windows[i], job.radius, rows, columns);
    if ((range.x1 - range.x0) * (range.y1 - range.y0) == side * side) continue;
    for (int dy = 0; dy < side; ++dy) {
      T* row = taps + i * job.block() + job.first_tap() + dy * job.stride();
      const bool inside = dy >= range.y0 && dy < range.y1;
      const int left = inside ? range.x0 : side, right = inside ? range.x1 : side;
      for (int dx = 0; dx < left; ++dx) row[dx] = T(0);
      for (int dx = right; dx < side; ++dx) row[dx] = T(0);
    }
  }
}

// Windows are written and read a line at a time, each line in another place: asked for before taps are made, the lines
// are there in time. More of them than the first-level cache holds would only push out features.
template <bool kWrite, class T>
FLOWFUSE_INLINE void expect_windows(const Lookup<T>& job, const Tile<T>& tile, int level, const T* windows) {
  constexpr int kMostLines = 512;
  const int window = job.side() * job.side();
  if (window * tile.rows > kMostLines) return;
  const T* first = windows + job.window_values(tile.b, level);
  for (int k = 0; k < window; ++k) {
    for (int row = 0; row < tile.rows; ++row) {
      __builtin_prefetch(first + k * job.pixels() + tile.pixel(job, row * kTileColumns), kWrite, 2);
    }
  }
}

// Combines taps to the values of the windows of one level; NaN for a pixel without a place.
template <int kBytes, class T>
FLOWFUSE_INLINE void write_values(const Lookup<T>& job, const Tile<T>& tile, int level, const T* taps) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  const int side = job.side(), stride = job.stride();
  for (int row = 0; row < tile.rows; ++row) {
    for (int first = 0; first < tile.columns; first += kAll) {
      const int count = tile.columns - first < kAll ? tile.columns - first : kAll;
      const int i = row * kTileColumns + first;
      Corners<T> corners[kAll];
      for (int j = 0; j < count; ++j) {
        const T nan = static_cast<T>(__builtin_nan(""));
        const bool missing = tile.windows[i + j].reach == Reach::kMissing;
        corners[j] = missing ? Corners<T>{nan, nan, nan, nan} : corners_of(tile.windows[i + j]);
      }
      T* out = job.output + job.window_values(tile.b, level) + tile.pixel(job, i);
      for (int dy = 0; dy < side; ++dy) {
        for (int dx = 0; dx < side; dx += kAll) {
          V values[kAll];
          for (int j = 0; j < kAll; ++j) {
            if (j >= count) {
              values[j] = V{};
              continue;
            }
            const T* upper = taps + (i + j) * job.block() + job.first_tap() + dy * stride + dx;
            V t00, t10, t01, t11;
            load(upper, t00);
            load(upper + 1, t10);
            load(upper + stride, t01);
            load(upper + stride + 1, t11);
            const Corners<T>& w = corners[j];
            values[j] = w.w00 * t00 + w.w10 * t10 + w.w01 * t01 + w.w11 * t11;
          }
          transpose<T, kBytes>(values);
          for (int k = 0; k < kAll && dx + k < side; ++k) {
            T* target = out + ((dx + k) * side + dy) * job.pixels();
            if (count == kAll) {
              store(values[k], target);
            } else {
              for (int j = 0; j < count; ++j) target[j] = values[k][j];
            }
          }
        }
      }
    }
  }
}

// Gradients of the taps of a row of a tile, times `factor`, as blocks of vectors [block][kTileColumns]; the border of
// the blocks receives zeros. What they say of pixels without a tap inside the map has no meaning. `values`, as many, is
// workspace.
template <int kBytes, class T>
FLOWFUSE_INLINE void tap_gradients(const Lookup<T>& job, const Tile<T>& tile, int level, int row, T factor, T* values,
                                   T* blocks) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  const int side = job.side(), stride = job.stride();
  for (int k = 0; k < job.block() * kTileColumns; ++k) blocks[k] = values[k] = T(0);
  const T* grad = job.grad + job.window_values(tile.b, level) + tile.pixel(job, row * kTileColumns);
  for (int dy = 0; dy < side; ++dy) {
    for (int dx = 0; dx < side; ++dx) {
      const T* from = grad + (dx * side + dy) * job.pixels();
      T* to = values + (job.first_tap() + dy * stride + dx) * kTileColumns;
      for (int i = 0; i < tile.columns; ++i) to[i] = from[i];
    }
  }
  alignas(64) Corners<T> corners[kTileColumns] = {};
  alignas(64) T weights[4][kTileColumns];
  for (int i = 0; i < tile.columns; ++i) corners[i] = corners_of(tile.windows[row * kTileColumns + i]);
  for (int i = 0; i < kTileColumns; ++i) {
    weights[0][i] = factor * corners[i].w00;
    weights[1][i] = factor * corners[i].w10;
    weights[2][i] = factor * corners[i].w01;
    weights[3][i] = factor * corners[i].w11;
  }
  for (int first = 0; first < kTileColumns; first += kAll) {
    V w00, w10, w01, w11;
    load(weights[0] + first, w00);
    load(weights[1] + first, w10);
    load(weights[2] + first, w01);
    load(weights[3] + first, w11);
    for (int y = 1; y <= job.taps(); ++y) {
      const T *lower = values + y * stride * kTileColumns + first, *upper = lower - stride * kTileColumns;
      T* out = blocks + y * stride * kTileColumns + first;
      for (int x = 1; x <= job.taps(); ++x) {
        V here, left, above, beyond;
        load(lower + x * kTileColumns, here);
        load(lower + (x - 1) * kTileColumns, left);
        load(upper + x * kTileColumns, above);
        load(upper + (x - 1) * kTileColumns, beyond);
        const V sum = w00 * here + w10 * left + w01 * above + w11 * beyond;
        store(sum, out + x * kTileColumns);
      }
    }
  }
}

// Adds the gradient in the coordinates of pixel i that one level's taps make to (gx, gy).
template <class T>
FLOWFUSE_INLINE void add_coordinate_gradient(const Lookup<T>& job, const Tile<T>& tile, int level, int i,
                                             const T* taps, T& gx, T& gy) {
  const Window<T>& window = tile.windows[i];
  if (window.reach != Reach::kNear) return;
  const int side = job.side(), stride = job.stride();
  const T fx = window.fx, fy = window.fy;
  const T* grad = job.grad + job.window_values(tile.b, level) + tile.pixel(job, i);
  T sum_x = 0, sum_y = 0;
  for (int dy = 0; dy < side; ++dy) {
    const T *upper = taps + i * job.block() + job.first_tap() + dy * stride, *lower = upper + stride;
    for (int dx = 0; dx < side; ++dx) {
      const T g = grad[(dx * side + dy) * job.pixels()];
      sum_x += g * ((1 - fy) * (upper[dx + 1] - upper[dx]) + fy * (lower[dx + 1] - lower[dx]));
      sum_y += g * ((1 - fx) * (lower[dx] - upper[dx]) + fx * (lower[dx + 1] - upper[dx + 1]));
    }
  }
  const T scale = T(1) / static_cast<T>(int64_t{1} << level);
  gx += scale * sum_x;
  gy += scale * sum_y;
}

// Writes what add_coordinate_gradient made of all levels, if it was asked for.
template <class T>
FLOWFUSE_INLINE void write_coordinate_gradients(const Lookup<T>& job, const Tile<T>& tile, const T* gx, const T* gy) {
  if (job.grad_coords == nullptr) return;
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    T* target = job.grad_coords + tile.b * 2 * job.pixels() + tile.pixel(job, i);
    target[0] = gx[i];
    target[job.pixels()] = gy[i];
  }
}

// coords are of dtype double.
template <class T>
void set_coords(Lookup<T>& job, const Tensor& coords, size_t levels, int64_t radius) {
  job.coords = data<double>(coords);
  job.batch = coords.size(0);
  job.height = coords.size(2);
  job.width = coords.size(3);
  job.levels = static_cast<int>(levels);
  job.radius = static_cast<int>(radius);
}

// Gradient of coords: as coords when asked for, else empty.
template <class T>
Tensor empty_coordinate_gradient(const char* op, const Tensor& like, const Tensor& coords, bool needed,
                                 Lookup<T>& job) {
  if (!needed) return allocate(op, like, {0}, like.scalar_type());
  const Tensor grad = allocate(op, like, shape_of(coords), like.scalar_type());
  job.grad_coords = mutable_data<T>(grad);
  return grad;
}

// Threads, each with a workspace of `values` numbers of the dtype of `like`.
class Workers {
 public:
  Workers(const char* op, const Tensor& like, int64_t tasks, int64_t values)
      : count_(std::max<int64_t>(1, std::min<int64_t>(tasks, torch::stable::get_num_threads()))),
        stride_(rounded_up(values, 64) * static_cast<int64_t>(sizeof_dtype(like.scalar_type()))),
        memory_(allocate(op, like, {count_, rounded_up(values, 64)}, like.scalar_type())) {}

  // Calls run(first, last, workspace) for stretches that make up [begin, end).
  template <class Run>
  void run(int64_t begin, int64_t end, const Run& run) const {
    char* memory = static_cast<char*>(memory_.mutable_data_ptr());
    torch::stable::parallel_for(0, count_, 1, [&](int64_t first, int64_t last) {
      for (int64_t i = first; i < last; ++i) {
        run(begin + (end - begin) * i / count_, begin + (end - begin) * (i + 1) / count_, memory + i * stride_);
      }
    });
  }

 private:
  int64_t count_, stride_;
  Tensor memory_;
};

}  // namespace flowfuse
