// What look-ups in a volume and on demand share. Pixels are taken a tile at a time. The taps of their windows lie in
// blocks, one a pixel, with a border one tap wide around them. The blocks of a row of a tile lie side by side, tap by
// tap: what is done to one is done to 16 pixels at once, along which windows lie in memory, too.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <cstdint>

#include "cpu/vector.h"
#include "windows.h"
#include "tensors.h"

namespace flowfuse::cpu {

constexpr int kTileRows = 4, kTileColumns = 16;        // a row of float32 results is a cache line
constexpr int kTilePixels = kTileRows * kTileColumns;  // a bit each of a 64-bit mask

// Of B maps of windows around coords.
template <class T>
struct Lookup {
  const double* coords;  // [B, 2, height, width]
  T* output;             // [B, levels * side^2, height, width]
  const T* grad;         // of output
  T* grad_coords;        // null when not asked for
  int64_t batch, height, width;
  int radius, levels;

  FLOWFUSE_INLINE int value_side() const { return 2 * radius + 1; }
  FLOWFUSE_INLINE int tap_side() const { return 2 * radius + 2; }  // along an axis
  FLOWFUSE_INLINE int stride() const { return tap_side() + 2; }    // of the rows of a block
  FLOWFUSE_INLINE int block() const { return stride() * stride(); }
  FLOWFUSE_INLINE int first_tap() const { return stride() + 1; }
  // Where tap number `tap` of the block of pixel i lies among the blocks of a tile.
  FLOWFUSE_INLINE int64_t tap_at(int i, int64_t tap) const {
    return (i / kTileColumns * block() + tap) * kTileColumns + i % kTileColumns;
  }
  FLOWFUSE_INLINE int64_t pixels() const { return height * width; }
  FLOWFUSE_INLINE int64_t tiles_across() const { return (width + kTileColumns - 1) / kTileColumns; }
  FLOWFUSE_INLINE int64_t tiles_of_item() const { return (height + kTileRows - 1) / kTileRows * tiles_across(); }
  int64_t tiles() const { return batch * tiles_of_item(); }
  FLOWFUSE_INLINE int64_t window_values(int64_t b, int level) const {  // first of [side^2, height, width]
    return (b * levels + level) * value_side() * value_side() * pixels();
  }
};

// Pixel i of a tile is in its row i / kTileColumns and column i % kTileColumns.
template <class T>
struct PixelTile {
  int64_t b, y, x;  // item and first pixel
  int rows, columns;
  Window<T> windows[kTilePixels];  // of a level

  FLOWFUSE_INLINE bool has(int i) const { return i / kTileColumns < rows && i % kTileColumns < columns; }
  FLOWFUSE_INLINE int64_t pixel(const Lookup<T>& params, int i) const {
    return (y + i / kTileColumns) * params.width + x + i % kTileColumns;
  }
};

template <class T>
FLOWFUSE_INLINE void load_tile(const Lookup<T>& params, int64_t index, PixelTile<T>& tile) {
  const int64_t within = index % params.tiles_of_item();
  tile.b = index / params.tiles_of_item();
  tile.y = within / params.tiles_across() * kTileRows;
  tile.x = within % params.tiles_across() * kTileColumns;
  tile.rows = static_cast<int>(params.height - tile.y < kTileRows ? params.height - tile.y : kTileRows);
  tile.columns = static_cast<int>(params.width - tile.x < kTileColumns ? params.width - tile.x : kTileColumns);
}

template <class T>
FLOWFUSE_INLINE void load_windows(const Lookup<T>& params, int level, int64_t rows, int64_t columns,
                                  PixelTile<T>& tile) {
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const double* at = params.coords + tile.b * 2 * params.pixels() + tile.pixel(params, i);
    tile.windows[i] = window_at<T>(at[0], at[params.pixels()], level, params.radius, rows, columns);
  }
}

// Zeros for the taps outside the map; those inside have been written.
template <class T>
FLOWFUSE_INLINE void clear_outside(const Lookup<T>& params, const PixelTile<T>& tile, int64_t rows, int64_t columns,
                                   T* taps) {
  const int side = params.tap_side();
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    const TapRange range = taps_inside(tile.windows[i], params.radius, rows, columns);
    if ((range.x1 - range.x0) * (range.y1 - range.y0) == side * side) continue;
    for (int dy = 0; dy < side; ++dy) {
      T* row = taps + params.tap_at(i, params.first_tap() + dy * params.stride());
      const bool inside = dy >= range.y0 && dy < range.y1;
      const int left = inside ? range.x0 : side, right = inside ? range.x1 : side;
      for (int dx = 0; dx < left; ++dx) row[dx * kTileColumns] = T(0);
      for (int dx = right; dx < side; ++dx) row[dx * kTileColumns] = T(0);
    }
  }
}

// Windows are written and read a line at a time, each line in another place: asked for before taps are made, the lines
// are there in time. More of them than the first-level cache holds would only push out features.
template <bool kWrite, class T>
FLOWFUSE_INLINE void prefetch_windows(const Lookup<T>& params, const PixelTile<T>& tile, int level, const T* windows) {
  constexpr int kMostLines = 512;
  const int window = params.value_side() * params.value_side();
  if (window * tile.rows > kMostLines) return;
  const T* first = windows + params.window_values(tile.b, level);
  for (int k = 0; k < window; ++k) {
    for (int row = 0; row < tile.rows; ++row) {
      __builtin_prefetch(first + k * params.pixels() + tile.pixel(params, row * kTileColumns), kWrite, 2);
    }
  }
}

// Weights of the corners of each value for the pixels of a row of a tile, times `factor`; NaN for one without a place.
template <class T>
struct RowWeights {
  alignas(64) T w00[kTileColumns], w10[kTileColumns], w01[kTileColumns], w11[kTileColumns];

  FLOWFUSE_INLINE RowWeights(const PixelTile<T>& tile, int row, T factor) {
    for (int i = 0; i < kTileColumns; ++i) {
      Corners<T> corners{T(0), T(0), T(0), T(0)};
      if (i < tile.columns) corners = corners_of(tile.windows[row * kTileColumns + i]);
      const bool missing = i < tile.columns && tile.windows[row * kTileColumns + i].reach == Reach::kMissing;
      const T times = missing ? static_cast<T>(__builtin_nan("")) : factor;
      w00[i] = times * corners.w00;
      w10[i] = times * corners.w10;
      w01[i] = times * corners.w01;
      w11[i] = times * corners.w11;
    }
  }
};

// Combines taps to the values of the windows of one level; NaN for a pixel without a place. Rows of a tile lie
// `row_step` apart in `output`, values of a window `value_step`.
template <int kBytes, class T>
FLOWFUSE_INLINE void combine_taps(const Lookup<T>& params, const PixelTile<T>& tile, const T* taps, T* output,
                                  int64_t row_step, int64_t value_step) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  const int side = params.value_side(), down = params.stride() * kTileColumns;
  for (int row = 0; row < tile.rows; ++row) {
    const RowWeights<T> weights(tile, row, T(1));
    for (int first = 0; first < tile.columns; first += kAll) {
      const int i = row * kTileColumns + first;
      V w00, w10, w01, w11;
      load(weights.w00 + first, w00);
      load(weights.w10 + first, w10);
      load(weights.w01 + first, w01);
      load(weights.w11 + first, w11);
      T* out = output + row * row_step + first;
      for (int dy = 0; dy < side; ++dy) {
        const T* upper = taps + params.tap_at(i, params.first_tap() + dy * params.stride());
        V t00, t01, t10, t11;
        load(upper, t00);
        load(upper + down, t01);
        for (int dx = 0; dx < side; ++dx) {
          load(upper + (dx + 1) * kTileColumns, t10);
          load(upper + (dx + 1) * kTileColumns + down, t11);
          const V values = w00 * t00 + w10 * t10 + w01 * t01 + w11 * t11;
          T* target = out + (dx * side + dy) * value_step;
          if (tile.columns - first >= kAll) {
            store(values, target);
          } else {
            for (int j = 0; j < tile.columns - first; ++j) target[j] = values[j];
          }
          t00 = t10;
          t01 = t11;
        }
      }
    }
  }
}

template <int kBytes, class T>
FLOWFUSE_INLINE void write_values(const Lookup<T>& params, const PixelTile<T>& tile, int level, const T* taps) {
  T* output = params.output + params.window_values(tile.b, level) + tile.pixel(params, 0);
  combine_taps<kBytes>(params, tile, taps, output, params.width, params.pixels());
}

// Gradients of the values of the windows of a row of a tile, as those of taps lie: blocks [block][kTileColumns], with
// zeros where there is none.
template <class T>
FLOWFUSE_INLINE void read_gradients(const Lookup<T>& params, const PixelTile<T>& tile, int level, int row, T* values) {
  const int side = params.value_side();
  for (int k = 0; k < params.block() * kTileColumns; ++k) values[k] = T(0);
  const T* grad = params.grad + params.window_values(tile.b, level) + tile.pixel(params, row * kTileColumns);
  for (int dy = 0; dy < side; ++dy) {
    for (int dx = 0; dx < side; ++dx) {
      const T* from = grad + (dx * side + dy) * params.pixels();
      T* to = values + (params.first_tap() + dy * params.stride() + dx) * kTileColumns;
      for (int i = 0; i < tile.columns; ++i) to[i] = from[i];
    }
  }
}

// From these, the gradients of taps, times `factor`, as blocks with a border of zeros. What they say of pixels without a
// tap inside the map has no meaning.
template <int kBytes, class T>
FLOWFUSE_INLINE void tap_gradients(const Lookup<T>& params, const PixelTile<T>& tile, int row, T factor,
                                   const T* values, T* blocks) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  for (int k = 0; k < params.block() * kTileColumns; ++k) blocks[k] = T(0);
  const RowWeights<T> weights(tile, row, factor);
  const int down = params.stride() * kTileColumns;
  for (int first = 0; first < kTileColumns; first += kAll) {
    V w00, w10, w01, w11;
    load(weights.w00 + first, w00);
    load(weights.w10 + first, w10);
    load(weights.w01 + first, w01);
    load(weights.w11 + first, w11);
    for (int y = 1; y <= params.tap_side(); ++y) {
      const T *lower = values + y * down + first, *upper = lower - down;
      T* out = blocks + y * down + first;
      for (int x = 1; x <= params.tap_side(); ++x) {
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

// Adds the gradients in the coordinates that the taps of a row of a tile on one level make to gx, gy [kTilePixels].
// values: as read_gradients made them.
template <int kBytes, class T>
FLOWFUSE_INLINE void add_coordinate_gradients(const Lookup<T>& params, const PixelTile<T>& tile, int level, int row,
                                              const T* taps, const T* values, T* gx, T* gy) {
  constexpr int kAll = kLanes<T, kBytes>;
  using V = Vector<T, kBytes>;
  const int side = params.value_side(), down = params.stride() * kTileColumns;
  alignas(64) T fx[kTileColumns], fy[kTileColumns], sums_x[kTileColumns], sums_y[kTileColumns];
  for (int i = 0; i < kTileColumns; ++i) {
    fx[i] = i < tile.columns ? tile.windows[row * kTileColumns + i].fx : T(0);
    fy[i] = i < tile.columns ? tile.windows[row * kTileColumns + i].fy : T(0);
  }
  for (int first = 0; first < kTileColumns; first += kAll) {
    V right, lower, sum_x = {}, sum_y = {};
    load(fx + first, right);
    load(fy + first, lower);
    for (int dy = 0; dy < side; ++dy) {
      const int64_t at = (params.first_tap() + dy * params.stride()) * kTileColumns + first;
      const T* upper = taps + row * params.block() * kTileColumns + at;
      V t00, t01, t10, t11, g;
      load(upper, t00);
      load(upper + down, t01);
      for (int dx = 0; dx < side; ++dx) {
        load(upper + (dx + 1) * kTileColumns, t10);
        load(upper + (dx + 1) * kTileColumns + down, t11);
        load(values + at + dx * kTileColumns, g);
        sum_x += g * ((T(1) - lower) * (t10 - t00) + lower * (t11 - t01));
        sum_y += g * ((T(1) - right) * (t01 - t00) + right * (t11 - t10));
        t00 = t10;
        t01 = t11;
      }
    }
    store(sum_x, sums_x + first);
    store(sum_y, sums_y + first);
  }
  const T scale = T(1) / static_cast<T>(int64_t{1} << level);
  for (int i = 0; i < tile.columns; ++i) {
    if (tile.windows[row * kTileColumns + i].reach != Reach::kNear) continue;
    gx[row * kTileColumns + i] += scale * sums_x[i];
    gy[row * kTileColumns + i] += scale * sums_y[i];
  }
}

// Writes what add_coordinate_gradients made of all levels, if it was asked for.
template <class T>
FLOWFUSE_INLINE void write_coordinate_gradients(const Lookup<T>& params, const PixelTile<T>& tile, const T* gx,
                                                const T* gy) {
  if (params.grad_coords == nullptr) return;
  for (int i = 0; i < kTilePixels; ++i) {
    if (!tile.has(i)) continue;
    T* target = params.grad_coords + tile.b * 2 * params.pixels() + tile.pixel(params, i);
    target[0] = gx[i];
    target[params.pixels()] = gy[i];
  }
}

// coords are of dtype double.
template <class T>
void set_coords(Lookup<T>& params, const Tensor& coords, size_t levels, int64_t radius) {
  params.coords = data<double>(coords);
  params.batch = coords.size(0);
  params.height = coords.size(2);
  params.width = coords.size(3);
  params.levels = static_cast<int>(levels);
  params.radius = static_cast<int>(radius);
}

// Gradient of coords: as coords when asked for, else empty.
template <class T>
Tensor empty_coordinate_gradient(const char* op, const Tensor& like, const Tensor& coords, bool needed,
                                 Lookup<T>& params) {
  if (!needed) return allocate(op, like, {0}, like.scalar_type());
  const Tensor grad = allocate(op, like, shape_of(coords), like.scalar_type());
  params.grad_coords = mutable_data<T>(grad);
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

}  // namespace flowfuse::cpu
