// Common gradient. A warp has 26 columns of 8 rows, and a lane for three columns more on each side. A lane takes the
// moments of its own column, 7 rows in registers, and combines those of the seven columns around it, which it gets by
// shuffles: 14 steps a window instead of 49, in the numbers of csrc/cpu/common_gradient.cpp. Rows are unrolled: what
// hides latencies are the loads and shuffles of several rows under way, not many warps. Log intensities are made
// once for each pixel of a block's tile and its surroundings, which lie in shared memory.
//
// The backward has two steps, since a pixel's gradient gathers from every window that holds it; the second one goes by
// columns too.
#include <tuple>
#include <type_traits>

#include "cuda/launch.cuh"
#include "operators/common_gradient.h"

namespace flowfuse::cuda {
namespace {

constexpr int kStrip = 8;                        // rows of a warp
constexpr int kStripRows = kStrip + 2 * kReach;  // that their windows lie in
constexpr int kColumns = kWarp - 2 * kReach;     // of a warp
constexpr int kWarpsAcross = 2, kWarpsDown = 4;
constexpr int kTileWidth = kWarpsAcross * kColumns, kTileHeight = kWarpsDown * kStrip;  // pixels of a block
constexpr int kSideX = kTileWidth + 2 * kReach, kSideY = kTileHeight + 2 * kReach;
constexpr int kCells = kSideX * kSideY;  // of a tile with its surroundings

static_assert(kWarpsAcross * kWarpsDown * kWarp == kThreads, "the warps of a block share its tile");

// A tensor [B, C, H, W] of any strides.
template <class T>
struct View {
  T* data;
  int64_t batch, channel, row, column;

  __device__ __forceinline__ T* at(int64_t b, int64_t y, int64_t x) const {
    return data + b * batch + y * row + x * column;
  }
};

template <class T>
View<const T> view_of(const Tensor& tensor) {
  return {data<T>(tensor), tensor.stride(0), tensor.stride(1), tensor.stride(2), tensor.stride(3)};
}

// F the frames' type, T that of sums. flow.data is null where there is no flow.
template <class T, class F>
struct Inputs {
  View<const F> frame0, frame1;
  View<const T> events, flow;
  int64_t batch, channels, height, width;
  bool linear;
};

// A tile's first pixel.
struct ImageTile {
  int64_t b, y, x;
};

__host__ __device__ __forceinline__ int64_t tiles_across(int64_t width) {
  return (width + kTileWidth - 1) / kTileWidth;
}

__host__ __device__ __forceinline__ int64_t tiles_down(int64_t height) {
  return (height + kTileHeight - 1) / kTileHeight;
}

__device__ __forceinline__ ImageTile tile_at(int64_t index, int64_t height, int64_t width) {
  const int64_t across = tiles_across(width), down = tiles_down(height), row = index / across;
  return {row / down, row % down * kTileHeight, index % across * kTileWidth};
}

// Index of pixel (y, x) in a tile with its surroundings.
__device__ __forceinline__ int cell_of(const ImageTile& tile, int64_t y, int64_t x) {
  return static_cast<int>(y - tile.y + kReach) * kSideX + static_cast<int>(x - tile.x + kReach);
}

// A lane's column of the strip of its warp; the windows around it are another lane's at both ends.
struct Strip {
  int64_t y, x;  // first row, and column: either may be outside the image
  bool inner;    // whether results of the column are this lane's
};

__device__ __forceinline__ Strip strip_of(const ImageTile& tile) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  return {tile.y + warp / kWarpsAcross * kStrip, tile.x + warp % kWarpsAcross * kColumns + lane - kReach,
          lane >= kReach && lane < kReach + kColumns};
}

// The value of the lane `step` columns to the right.
template <class T>
__device__ __forceinline__ T beside(T value, int step) {
  return __shfl_sync(kWholeWarp, value, (static_cast<int>(threadIdx.x) + step) & (kWarp - 1));
}

// Powers and logarithms of the special function unit: off by 1e-6 at most where log intensities are taken, which are
// compared to 1e-3 and more.
struct FastFunctions {
  static __device__ __forceinline__ float log(float x) { return __logf(x); }
  static __device__ __forceinline__ float decoding_power(float base) { return ::exp2f(2.4f * __log2f(base)); }
};

template <class T>
using DeviceFunctions = std::conditional_t<std::is_same_v<T, float>, FastFunctions, LibraryFunctions>;

template <class T, class F>
__device__ __forceinline__ T log_at(const Inputs<T, F>& in, const View<const F>& frame, int64_t b, int64_t y, int64_t x,
                                    T* slope) {
  return log_intensity<T, DeviceFunctions<T>>(luma<T>(frame.at(b, y, x), in.channels, frame.channel), in.linear, slope);
}

// What a tile needs of the inputs; 0 outside the image.
template <class T>
struct Signals {
  T log0[kCells], change[kCells], events[kCells];
};

template <class T, class F>
__device__ __forceinline__ void load_signals(const Inputs<T, F>& in, const ImageTile& tile, Signals<T>& signals) {
  for (int cell = static_cast<int>(threadIdx.x); cell < kCells; cell += kThreads) {
    const int64_t y = tile.y + cell / kSideX - kReach, x = tile.x + cell % kSideX - kReach;
    T log0 = 0, change = 0, events = 0;
    if (y >= 0 && y < in.height && x >= 0 && x < in.width) {
      log0 = log_at(in, in.frame0, tile.b, y, x, static_cast<T*>(nullptr));
      change = log_at(in, in.frame1, tile.b, y, x, static_cast<T*>(nullptr)) - log0;
      events = *in.events.at(tile.b, y, x);
    }
    signals.log0[cell] = log0;
    signals.change[cell] = change;
    signals.events[cell] = events;
  }
}

// Moments of a = change and b = events in the window of a pixel, the means as differences from the values at the pixel.
template <class T>
struct Moments {
  T share, mean_a, mean_b, var_a, var_b, covariance;  // share: one over the number of pixels
};

// Moments of seven rows of a column, those in the image: the means as differences from the centre row, and sums of
// squares and products of deviations from them.
template <class T>
struct ColumnMoments {
  T centre_a, centre_b, mean_a, mean_b, square_a, square_b, product, rows;
};

// kWhole: all rows are in the image; else those from `begin` to `end`.
template <bool kWhole, class T>
__device__ __forceinline__ ColumnMoments<T> column_moments(const T* a, const T* b, int begin, int end) {
  const T centre_a = a[kReach], centre_b = b[kReach];
  const T rows = static_cast<T>(kWhole ? kWindowSide : end - begin), part = 1 / rows;
  T sum_a = 0, sum_b = 0;
#pragma unroll
  for (int k = 0; k < kWindowSide; ++k) {
    if (!kWhole && (k < begin || k >= end)) continue;
    sum_a += a[k] - centre_a;
    sum_b += b[k] - centre_b;
  }
  const T mean_a = sum_a * part, mean_b = sum_b * part;
  T square_a = 0, square_b = 0, product = 0;
#pragma unroll
  for (int k = 0; k < kWindowSide; ++k) {
    if (!kWhole && (k < begin || k >= end)) continue;
    const T da = (a[k] - centre_a) - mean_a, db = (b[k] - centre_b) - mean_b;
    square_a += da * da;
    square_b += db * db;
    product += da * db;
  }
  return {centre_a, centre_b, mean_a, mean_b, square_a, square_b, product, rows};
}

// The moments of this lane's column and those beside it, which all lanes of the warp must have. kWhole: all of them
// are in the image.
template <bool kWhole, class T>
__device__ __forceinline__ Moments<T> combine_columns(const ColumnMoments<T>& own, int64_t x, int64_t width) {
  T a[kWindowSide], b[kWindowSide], sum_a = 0, sum_b = 0, square_a = 0, square_b = 0, product = 0, columns = 0;
#pragma unroll
  for (int k = 0; k < kWindowSide; ++k) {
    const int step = k - kReach;
    const bool counts = kWhole || (x + step >= 0 && x + step < width);
    a[k] = (beside(own.centre_a, step) - own.centre_a) + beside(own.mean_a, step);
    b[k] = (beside(own.centre_b, step) - own.centre_b) + beside(own.mean_b, step);
    const T within_a = beside(own.square_a, step), within_b = beside(own.square_b, step);
    const T within_ab = beside(own.product, step);
    sum_a += counts ? a[k] : T(0);
    sum_b += counts ? b[k] : T(0);
    square_a += counts ? within_a : T(0);
    square_b += counts ? within_b : T(0);
    product += counts ? within_ab : T(0);
    columns += counts ? T(1) : T(0);
  }
  const T part = 1 / columns, mean_a = sum_a * part, mean_b = sum_b * part;
  T between_a = 0, between_b = 0, between_ab = 0;
#pragma unroll
  for (int k = 0; k < kWindowSide; ++k) {
    const bool counts = kWhole || (x + k - kReach >= 0 && x + k - kReach < width);
    const T da = counts ? a[k] - mean_a : T(0), db = counts ? b[k] - mean_b : T(0);
    between_a += da * da;
    between_b += db * db;
    between_ab += da * db;
  }
  const T share = 1 / (own.rows * columns);
  return {share,
          mean_a,
          mean_b,
          (square_a + own.rows * between_a) * share,
          (square_b + own.rows * between_b) * share,
          (product + own.rows * between_ab) * share};
}

template <bool kWhole, class T, class Work>
__device__ __forceinline__ void visit_strip(const Signals<T>& signals, const ImageTile& tile, int64_t height,
                                            int64_t width, const Work& work) {
  const Strip strip = strip_of(tile);
  const int first = cell_of(tile, strip.y - kReach, strip.x);
  T a[kStripRows], b[kStripRows];
#pragma unroll
  for (int row = 0; row < kStripRows; ++row) {
    a[row] = signals.change[first + row * kSideX];
    b[row] = signals.events[first + row * kSideX];
  }
#pragma unroll
  for (int row = 0; row < kStrip; ++row) {
    const int64_t y = strip.y + row;
    if (y >= height) break;
    const Span rows = around(y, height);
    const int begin = static_cast<int>(rows.begin - y) + kReach, end = static_cast<int>(rows.end - y) + kReach;
    const ColumnMoments<T> column = column_moments<kWhole>(a + row, b + row, begin, end);
    const Moments<T> moments = combine_columns<kWhole>(column, strip.x, width);
    if (strip.inner && strip.x < width) work(y, strip.x, moments);
  }
}

// Calls work(y, x, moments) for the pixels of a tile.
template <class T, class Work>
__device__ __forceinline__ void for_windows(const Signals<T>& signals, const ImageTile& tile, int64_t height,
                                            int64_t width, const Work& work) {
  const bool whole = tile.y >= kReach && tile.y + kTileHeight + kReach <= height && tile.x >= kReach &&
                     tile.x + kTileWidth + kReach <= width;
  if (whole) {
    visit_strip<true>(signals, tile, height, width, work);
  } else {
    visit_strip<false>(signals, tile, height, width, work);
  }
}

template <class T>
struct Slopes {
  T x, y;
};

// Central differences of log0 with replicated border.
template <class T>
__device__ __forceinline__ Slopes<T> slopes_at(const Signals<T>& signals, const ImageTile& tile, int64_t y, int64_t x,
                                               int64_t height, int64_t width) {
  const int cell = cell_of(tile, y, x);
  const T left = signals.log0[x > 0 ? cell - 1 : cell], right = signals.log0[x + 1 < width ? cell + 1 : cell];
  const T up = signals.log0[y > 0 ? cell - kSideX : cell];
  const T down = signals.log0[y + 1 < height ? cell + kSideX : cell];
  return {(right - left) / 2, (down - up) / 2};
}

template <class T, class F>
__global__ void __launch_bounds__(kThreads) gradients(Inputs<T, F> in, T* __restrict__ output) {
  Signals<T>& signals = *shared_memory<Signals<T>>();
  const int64_t plane = in.height * in.width;
  const int64_t tiles = in.batch * tiles_down(in.height) * tiles_across(in.width);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const ImageTile tile = tile_at(index, in.height, in.width);
    __syncthreads();  // the tile before has been read
    load_signals(in, tile, signals);
    __syncthreads();
    for_windows(signals, tile, in.height, in.width, [&](int64_t y, int64_t x, const Moments<T>& moments) {
      const Slopes<T> slopes = slopes_at(signals, tile, y, x, in.height, in.width);
      const int cell = cell_of(tile, y, x);
      T* out = output + tile.b * 6 * plane + y * in.width + x;
      out[0] = slopes.x;
      out[plane] = slopes.y;
      out[2 * plane] = signals.change[cell];
      out[3 * plane] = signals.events[cell];
      out[4 * plane] = moments.covariance * similarity_scale(moments.var_a, moments.var_b);
      T predicted = 0;
      if (in.flow.data != nullptr) {
        const T* flow = in.flow.at(tile.b, y, x);
        predicted = -(slopes.x * flow[0] + slopes.y * flow[in.flow.channel]);
      }
      out[5 * plane] = predicted;
    });
  }
}

// What the window around a pixel hands to its pixels: p, q, r of SimilarityGradient, the means as differences from the
// values at the pixel, and the change there.
constexpr int kFields = 6;

// fields [kFields, B, H, W]; grad_flow [B, 2, H, W] or null.
template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    window_fields(Inputs<T, F> in, View<const T> grad, T* __restrict__ fields, T* __restrict__ grad_flow) {
  Signals<T>& signals = *shared_memory<Signals<T>>();
  const int64_t plane = in.height * in.width;
  const int64_t tiles = in.batch * tiles_down(in.height) * tiles_across(in.width);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const ImageTile tile = tile_at(index, in.height, in.width);
    __syncthreads();  // the tile before has been read
    load_signals(in, tile, signals);
    __syncthreads();
    for_windows(signals, tile, in.height, in.width, [&](int64_t y, int64_t x, const Moments<T>& moments) {
      const T* g = grad.at(tile.b, y, x);
      const SimilarityGradient<T> similarity =
          similarity_gradient(g[4 * grad.channel], moments.share, moments.var_a, moments.var_b, moments.covariance);
      T* out = fields + tile.b * plane + y * in.width + x;
      const int64_t field = in.batch * plane;
      out[0] = similarity.p;
      out[field] = similarity.q;
      out[2 * field] = similarity.r;
      out[3 * field] = moments.mean_a;
      out[4 * field] = moments.mean_b;
      out[5 * field] = signals.change[cell_of(tile, y, x)];
      if (in.flow.data != nullptr) {
        const Slopes<T> slopes = slopes_at(signals, tile, y, x, in.height, in.width);
        T* flow = grad_flow + tile.b * 2 * plane + y * in.width + x;
        flow[0] = -g[5 * grad.channel] * slopes.x;
        flow[plane] = -g[5 * grad.channel] * slopes.y;
      }
    });
  }
}

// Gradient in the slope of `axis` (0 = x, 1 = y) at a pixel: channels 0 and 1, and 5 through the flow.
template <class T, class F>
__device__ __forceinline__ T slope_gradient(const Inputs<T, F>& in, const View<const T>& grad, int axis, int64_t b,
                                            int64_t y, int64_t x) {
  const T* g = grad.at(b, y, x);
  T sum = g[axis * grad.channel];
  if (in.flow.data != nullptr) sum -= g[5 * grad.channel] * in.flow.at(b, y, x)[axis * in.flow.channel];
  return sum;
}

// Adjoint of the central differences at (y, x).
template <class T, class F>
__device__ __forceinline__ T differences_gradient(const Inputs<T, F>& in, const View<const T>& grad, int64_t b,
                                                  int64_t y, int64_t x) {
  T sum = 0;
  sum += x > 0 ? slope_gradient(in, grad, 0, b, y, x - 1) : -slope_gradient(in, grad, 0, b, y, x);
  sum -= x + 1 < in.width ? slope_gradient(in, grad, 0, b, y, x + 1) : -slope_gradient(in, grad, 0, b, y, x);
  sum += y > 0 ? slope_gradient(in, grad, 1, b, y - 1, x) : -slope_gradient(in, grad, 1, b, y, x);
  sum -= y + 1 < in.height ? slope_gradient(in, grad, 1, b, y + 1, x) : -slope_gradient(in, grad, 1, b, y, x);
  return sum / 2;
}

// Pixel j receives p (b_j - mean_b) - q (a_j - mean_a) from every window that holds it, and the like for b. Windows are
// symmetric: these are the ones around the pixels of its own window. Summed by columns first: what the column's own
// pixel i of a row receives, and the sums of p, q and r; then over the columns own_a + p (b_j - b_i) - q (a_j - a_i).
// (csrc/cpu/common_gradient.cpp says why no digits are lost.)
template <class T>
struct ColumnGradients {
  T a, b;  // of the pixel
  T own_a, own_b, p, q, r;

  // Adds what the window around another pixel of the column hands on; its means are differences from the values there.
  __device__ __forceinline__ void add(const T (&field)[kFields], T events) {
    const T da = (a - field[5]) - field[3], db = (b - events) - field[4];
    own_a += field[0] * db - field[1] * da;
    own_b += field[0] * da - field[2] * db;
    p += field[0];
    q += field[1];
    r += field[2];
  }
};

template <class T, class F>
__global__ void __launch_bounds__(kThreads)
    input_gradients(Inputs<T, F> in, View<const T> grad, const T* __restrict__ fields, F* __restrict__ grad_frame0,
                    F* __restrict__ grad_frame1, T* __restrict__ grad_events) {
  const int64_t plane = in.height * in.width;
  const int64_t tiles = in.batch * tiles_down(in.height) * tiles_across(in.width);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const ImageTile tile = tile_at(index, in.height, in.width);
    const Strip strip = strip_of(tile);
    const bool column_inside = strip.x >= 0 && strip.x < in.width;
    ColumnGradients<T> columns[kStrip] = {};
#pragma unroll
    for (int row = 0; row < kStrip; ++row) {
      if (!column_inside || strip.y + row >= in.height) continue;
      columns[row].a = fields[5 * in.batch * plane + tile.b * plane + (strip.y + row) * in.width + strip.x];
      columns[row].b = *in.events.at(tile.b, strip.y + row, strip.x);
    }
#pragma unroll
    for (int k = 0; k < kStripRows; ++k) {
      const int64_t y = strip.y + k - kReach;
      if (!column_inside || y < 0 || y >= in.height) continue;
      const T* from = fields + tile.b * plane + y * in.width + strip.x;
      T field[kFields];
#pragma unroll
      for (int n = 0; n < kFields; ++n) field[n] = from[n * in.batch * plane];
      const T events = *in.events.at(tile.b, y, strip.x);
#pragma unroll
      for (int row = 0; row < kStrip; ++row) {
        if (row <= k && k < row + kWindowSide) columns[row].add(field, events);
      }
    }
#pragma unroll
    for (int row = 0; row < kStrip; ++row) {
      const int64_t y = strip.y + row, x = strip.x;
      if (y >= in.height) break;
      const ColumnGradients<T>& own = columns[row];
      T grad_a = 0, grad_b = 0;
#pragma unroll
      for (int step = -kReach; step <= kReach; ++step) {
        const T da = own.a - beside(own.a, step), db = own.b - beside(own.b, step);
        const T p = beside(own.p, step), q = beside(own.q, step), r = beside(own.r, step);
        grad_a += beside(own.own_a, step) + (p * db - q * da);
        grad_b += beside(own.own_b, step) + (p * da - r * db);
      }
      if (!strip.inner || x >= in.width) continue;
      const T* g = grad.at(tile.b, y, x);
      grad_a += g[2 * grad.channel];
      grad_b += g[3 * grad.channel];
      T slope0, slope1;
      log_at(in, in.frame0, tile.b, y, x, &slope0);
      log_at(in, in.frame1, tile.b, y, x, &slope1);
      const int64_t pixel = y * in.width + x;
      grad_events[tile.b * plane + pixel] = grad_b;
      const T grad0 = (differences_gradient(in, grad, tile.b, y, x) - grad_a) * slope0, grad1 = grad_a * slope1;
      for (int64_t c = 0; c < in.channels; ++c) {
        const T weight = luma_weight<T>(in.channels, c);
        const int64_t at = (tile.b * in.channels + c) * plane + pixel;
        grad_frame0[at] = static_cast<F>(grad0 * weight);
        grad_frame1[at] = static_cast<F>(grad1 * weight);
      }
    }
  }
}

template <class T, class F>
Inputs<T, F> inputs_of(const Tensor& frame0, const Tensor& frame1, const Tensor& event_sum,
                       const std::optional<Tensor>& flow, bool linear) {
  const View<const T> none{nullptr, 0, 0, 0, 0};
  return {view_of<F>(frame0),
          view_of<F>(frame1),
          view_of<T>(event_sum),
          flow.has_value() ? view_of<T>(*flow) : none,
          frame0.size(0),
          frame0.size(1),
          frame0.size(2),
          frame0.size(3),
          linear};
}

unsigned grid_for(const Tensor& frame) {
  return blocks_for(frame.size(0) * tiles_down(frame.size(2)) * tiles_across(frame.size(3)), 1);
}

// Calls visit(T{}, F{}) with the types of sums and of a frame.
template <class Visit>
void with_types(const Tensor& frame, const Visit& visit) {
  with_feature_type(frame.scalar_type(), [&](auto feature) {
    using F = decltype(feature);
    visit(SumType<F>{}, feature);
  });
}

Tensor common_gradient(Tensor frame0, Tensor frame1, Tensor event_sum, std::optional<Tensor> flow, bool linear) {
  const char* op = "common_gradient";
  check_common_gradient(op, frame0, frame1, event_sum, flow);
  const DeviceCall call(op, frame0);
  const Tensor output =
      allocate(op, event_sum, {frame0.size(0), 6, frame0.size(2), frame0.size(3)}, event_sum.scalar_type());
  if (output.numel() == 0) return output;
  with_types(frame0, [&](auto sum, auto feature) {
    using T = decltype(sum);
    using F = decltype(feature);
    call.launch(gradients<T, F>, grid_for(frame0), kThreads, sizeof(Signals<T>),
                inputs_of<T, F>(frame0, frame1, event_sum, flow, linear), mutable_data<T>(output));
  });
  return output;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> common_gradient_backward(Tensor grad, Tensor frame0, Tensor frame1,
                                                                    Tensor event_sum, std::optional<Tensor> flow,
                                                                    bool linear) {
  const char* op = "common_gradient_backward";
  check_common_gradient(op, frame0, frame1, event_sum, flow);
  const ScalarType dtype = event_sum.scalar_type();
  check_gradient(op, grad, {frame0.size(0), 6, frame0.size(2), frame0.size(3)}, dtype, "frame0", frame0);
  const DeviceCall call(op, frame0);
  const Tensor grad_frame0 = allocate(op, frame0, shape_of(frame0), frame0.scalar_type());
  const Tensor grad_frame1 = allocate(op, frame1, shape_of(frame1), frame1.scalar_type());
  const Tensor grad_events = allocate(op, event_sum, shape_of(event_sum), dtype);
  const Tensor grad_flow = allocate(op, event_sum, flow.has_value() ? shape_of(*flow) : std::vector<int64_t>{0}, dtype);
  if (grad.numel() == 0) return {grad_frame0, grad_frame1, grad_events, grad_flow};
  const Tensor fields = allocate(op, event_sum, {kFields, event_sum.numel()}, dtype);
  with_types(frame0, [&](auto sum, auto feature) {
    using T = decltype(sum);
    using F = decltype(feature);
    const Inputs<T, F> in = inputs_of<T, F>(frame0, frame1, event_sum, flow, linear);
    const View<const T> g = view_of<T>(grad);
    call.launch(window_fields<T, F>, grid_for(frame0), kThreads, sizeof(Signals<T>), in, g, mutable_data<T>(fields),
                mutable_data<T>(grad_flow));
    call.launch(input_gradients<T, F>, grid_for(frame0), kThreads, 0, in, g, data<T>(fields),
                mutable_data<F>(grad_frame0), mutable_data<F>(grad_frame1), mutable_data<T>(grad_events));
  });
  return {grad_frame0, grad_frame1, grad_events, grad_flow};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("common_gradient", TORCH_BOX(&flowfuse::cuda::common_gradient));
  m.impl("common_gradient_backward", TORCH_BOX(&flowfuse::cuda::common_gradient_backward));
}
