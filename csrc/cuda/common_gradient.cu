// Common gradient: a block makes a tile of pixels from the log intensities and event sums of the tile and its
// surroundings, which lie in shared memory; nothing but the result is written. The backward has two steps, since
// a pixel's gradient gathers from every window that holds it.
#include <tuple>

#include "cuda/launch.cuh"
#include "operators/common_gradient.h"

namespace flowfuse::cuda {
namespace {

constexpr int kTileWidth = kWarp, kTileHeight = 16;  // pixels, and threads of a block
constexpr int kSideX = kTileWidth + 2 * kReach, kSideY = kTileHeight + 2 * kReach;
constexpr int kCells = kSideX * kSideY;  // of a tile with its surroundings

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

// Calls work(cell, y, x) for the pixels of a tile and its surroundings, whether they are in the image or not.
template <class Work>
__device__ __forceinline__ void for_cells(const ImageTile& tile, const Work& work) {
  for (int cell = threadIdx.y * kTileWidth + threadIdx.x; cell < kCells; cell += kTileWidth * kTileHeight) {
    work(cell, tile.y + cell / kSideX - kReach, tile.x + cell % kSideX - kReach);
  }
}

template <class T, class F>
__device__ __forceinline__ T log_at(const Inputs<T, F>& in, const View<const F>& frame, int64_t b, int64_t y, int64_t x,
                                    T* slope) {
  return log_intensity<T>(luma<T>(frame.at(b, y, x), in.channels, frame.channel), in.linear, slope);
}

// What a tile needs of the inputs; cells outside the image are neither written nor read.
template <class T>
struct Signals {
  T log0[kCells], change[kCells], events[kCells];
};

template <class T, class F>
__device__ __forceinline__ void load_signals(const Inputs<T, F>& in, const ImageTile& tile, Signals<T>& signals) {
  for_cells(tile, [&](int cell, int64_t y, int64_t x) {
    if (y < 0 || y >= in.height || x < 0 || x >= in.width) return;
    signals.log0[cell] = log_at(in, in.frame0, tile.b, y, x, static_cast<T*>(nullptr));
    signals.events[cell] = *in.events.at(tile.b, y, x);
  });
  // A pass of its own: two powers in one would need more registers than float64 has.
  for_cells(tile, [&](int cell, int64_t y, int64_t x) {
    if (y < 0 || y >= in.height || x < 0 || x >= in.width) return;
    const T log1 = log_at(in, in.frame1, tile.b, y, x, static_cast<T*>(nullptr));
    signals.change[cell] = log1 - signals.log0[cell];
  });
}

// Moments of a = change and b = events in the window of a pixel.
template <class T>
struct Moments {
  T share, mean_a, mean_b, var_a, var_b, covariance;  // share: one over the number of pixels
};

// The window begins at cell `first` of the tile. kWhole: no column is cut off, so that a row unrolls.
template <bool kWhole, class T>
__device__ __forceinline__ Moments<T> window_moments(const Signals<T>& signals, int first, int rows, int columns) {
  if (kWhole) columns = kWindowSide;
  const int end = first + rows * kSideX;
  T sum_a = 0, sum_b = 0;
  for (int row = first; row < end; row += kSideX) {
    for (int cell = row; cell < row + columns; ++cell) {
      sum_a += signals.change[cell];
      sum_b += signals.events[cell];
    }
  }
  const T share = 1 / static_cast<T>(rows * columns), mean_a = sum_a * share, mean_b = sum_b * share;
  T var_a = 0, var_b = 0, covariance = 0;
  for (int row = first; row < end; row += kSideX) {
    for (int cell = row; cell < row + columns; ++cell) {
      const T da = signals.change[cell] - mean_a, db = signals.events[cell] - mean_b;
      var_a += da * da;
      var_b += db * db;
      covariance += da * db;
    }
  }
  return {share, mean_a, mean_b, var_a * share, var_b * share, covariance * share};
}

template <class T>
__device__ __forceinline__ Moments<T> moments_at(const Signals<T>& signals, const ImageTile& tile, int64_t y, int64_t x,
                                                 int64_t height, int64_t width) {
  const Span rows = around(y, height), columns = around(x, width);
  const int first = cell_of(tile, rows.begin, columns.begin);
  const int down = static_cast<int>(rows.end - rows.begin), across = static_cast<int>(columns.end - columns.begin);
  return across == kWindowSide ? window_moments<true>(signals, first, down, across)
                               : window_moments<false>(signals, first, down, across);
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
__global__ void __launch_bounds__(kTileWidth* kTileHeight) gradients(Inputs<T, F> in, T* __restrict__ output) {
  Signals<T>& signals = *shared_memory<Signals<T>>();
  const int64_t plane = in.height * in.width;
  const int64_t tiles = in.batch * tiles_down(in.height) * tiles_across(in.width);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const ImageTile tile = tile_at(index, in.height, in.width);
    __syncthreads();  // the tile before has been read
    load_signals(in, tile, signals);
    __syncthreads();
    const int64_t y = tile.y + threadIdx.y, x = tile.x + threadIdx.x;
    if (y >= in.height || x >= in.width) continue;
    const Slopes<T> slopes = slopes_at(signals, tile, y, x, in.height, in.width);
    const Moments<T> moments = moments_at(signals, tile, y, x, in.height, in.width);
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
  }
}

// What the window around a pixel hands to its pixels: p, q, r of SimilarityGradient and the means.
constexpr int kFields = 5;

// fields [kFields, B, H, W]; grad_flow [B, 2, H, W] or null.
template <class T, class F>
__global__ void __launch_bounds__(kTileWidth* kTileHeight)
    window_fields(Inputs<T, F> in, View<const T> grad, T* __restrict__ fields, T* __restrict__ grad_flow) {
  Signals<T>& signals = *shared_memory<Signals<T>>();
  const int64_t plane = in.height * in.width;
  const int64_t tiles = in.batch * tiles_down(in.height) * tiles_across(in.width);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const ImageTile tile = tile_at(index, in.height, in.width);
    __syncthreads();  // the tile before has been read
    load_signals(in, tile, signals);
    __syncthreads();
    const int64_t y = tile.y + threadIdx.y, x = tile.x + threadIdx.x;
    if (y >= in.height || x >= in.width) continue;
    const T* g = grad.at(tile.b, y, x);
    const Moments<T> moments = moments_at(signals, tile, y, x, in.height, in.width);
    const SimilarityGradient<T> similarity =
        similarity_gradient(g[4 * grad.channel], moments.share, moments.var_a, moments.var_b, moments.covariance);
    T* out = fields + tile.b * plane + y * in.width + x;
    const int64_t field = in.batch * plane;
    out[0] = similarity.p;
    out[field] = similarity.q;
    out[2 * field] = similarity.r;
    out[3 * field] = moments.mean_a;
    out[4 * field] = moments.mean_b;
    if (in.flow.data != nullptr) {
      const Slopes<T> slopes = slopes_at(signals, tile, y, x, in.height, in.width);
      T* flow = grad_flow + tile.b * 2 * plane + y * in.width + x;
      flow[0] = -g[5 * grad.channel] * slopes.x;
      flow[plane] = -g[5 * grad.channel] * slopes.y;
    }
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

// Windows are symmetric: those that hold a pixel are those around the pixels of its own window.
template <class T, class F>
__global__ void __launch_bounds__(kTileWidth* kTileHeight)
    input_gradients(Inputs<T, F> in, View<const T> grad, const T* __restrict__ fields, F* __restrict__ grad_frame0,
                    F* __restrict__ grad_frame1, T* __restrict__ grad_events) {
  using Fields = T[kFields][kCells];
  Fields& around_tile = *shared_memory<Fields>();
  const int64_t plane = in.height * in.width;
  const int64_t tiles = in.batch * tiles_down(in.height) * tiles_across(in.width);
  for (int64_t index = blockIdx.x; index < tiles; index += gridDim.x) {
    const ImageTile tile = tile_at(index, in.height, in.width);
    __syncthreads();  // the tile before has been read
    for_cells(tile, [&](int cell, int64_t y, int64_t x) {
      const bool inside = y >= 0 && y < in.height && x >= 0 && x < in.width;
      const T* from = fields + tile.b * plane + y * in.width + x;
      // Outside the image there is no window, and p = q = r = 0 leaves nothing of it.
      for (int k = 0; k < kFields; ++k) around_tile[k][cell] = inside ? from[k * in.batch * plane] : T(0);
    });
    __syncthreads();
    const int64_t y = tile.y + threadIdx.y, x = tile.x + threadIdx.x;
    if (y >= in.height || x >= in.width) continue;
    T slope0, slope1;
    const T log0 = log_at(in, in.frame0, tile.b, y, x, &slope0);
    const T a = log_at(in, in.frame1, tile.b, y, x, &slope1) - log0, b = *in.events.at(tile.b, y, x);
    const T* g = grad.at(tile.b, y, x);
    T grad_a = g[2 * grad.channel], grad_b = g[3 * grad.channel];
    const int first = cell_of(tile, y, x) - kReach * kSideX - kReach;
    for (int r = 0; r < kWindowSide; ++r) {
      for (int c = 0; c < kWindowSide; ++c) {
        const int cell = first + r * kSideX + c;
        const T da = a - around_tile[3][cell], db = b - around_tile[4][cell];
        grad_a += around_tile[0][cell] * db - around_tile[1][cell] * da;
        grad_b += around_tile[0][cell] * da - around_tile[2][cell] * db;
      }
    }
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

const dim3 kBlock(kTileWidth, kTileHeight);

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
    call.launch(gradients<T, F>, grid_for(frame0), kBlock, sizeof(Signals<T>),
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
    call.launch(window_fields<T, F>, grid_for(frame0), kBlock, sizeof(Signals<T>), in, g, mutable_data<T>(fields),
                mutable_data<T>(grad_flow));
    call.launch(input_gradients<T, F>, grid_for(frame0), kBlock, sizeof(T[kFields][kCells]), in, g, data<T>(fields),
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
