// Correlation windows to matches and tokens: a block reads the windows of 32 pixels once, in chunks of channels that
// go through shared memory, and keeps a running softmax beside the sums of the tokens.
#include <optional>
#include <tuple>

#include "cuda/launch.cuh"
#include "optional_tensors.h"
#include "operators/read_windows.h"

namespace flowfuse::cuda {
namespace {

constexpr int kRows = 8;                     // warps of a block, which share the channels
constexpr int kChunk = 64;                   // channels of windows in shared memory
constexpr int kOwnTokens = 4;                // channels of tokens a thread sums
constexpr int kTokens = kRows * kOwnTokens;  // of a block; more of them read the windows again

__device__ __forceinline__ float exponential(float x) { return ::expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }
__device__ __forceinline__ float logarithm(float x) { return ::logf(x); }
__device__ __forceinline__ double logarithm(double x) { return ::log(x); }

template <class T>
struct Shared {
  T windows[kChunk][kWarp];
  Quad<T> weights[kTokens][kChunk / Quad<T>::kCount];
  T parts[4][kRows][kWarp];  // of the softmax: largest score, total, sums of x and y
  T matches[3][kWarp];
};

// A softmax of scores that come one after the other.
template <class T>
struct Softmax {
  T top = -static_cast<T>(INFINITY), total = 0, x = 0, y = 0;

  __device__ __forceinline__ void add(T score, T offset_x, T offset_y) {
    if (!(score <= top)) {  // NaN too
      const T scale = exponential(top - score);
      total *= scale;
      x *= scale;
      y *= scale;
      top = score;
    }
    const T weight = exponential(score - top);
    total += weight;
    x += weight * offset_x;
    y += weight * offset_y;
  }
};

template <class T, class O>
__global__ void __launch_bounds__(kRows* kWarp, 2) read_blocks(WindowReading<T, O> params) {
  Shared<T>& shared = *shared_memory<Shared<T>>();
  const int lane = threadIdx.x, row = threadIdx.y;
  const int64_t segments = (params.plane + kWarp - 1) / kWarp;
  const T sharpness = exponential(params.log_sharpness[0]);
  for (int64_t block = blockIdx.x; block < params.count * segments; block += gridDim.x) {
    const int64_t n = block / segments, pixel = block % segments * kWarp + lane;
    const bool used = pixel < params.plane;
    const T fade = used && params.fade != nullptr ? params.fade[n % params.fades * params.plane + pixel] : T(1);
    const T gate = used && params.gate != nullptr ? params.gate[n * params.plane + pixel] : T(1);
    for (int64_t first = 0; first == 0 || first < params.token_channels; first += kTokens) {
      Softmax<T> softmax;
      T sums[kOwnTokens] = {};
      for (int64_t chunk = 0; chunk < params.channels; chunk += kChunk) {
        __syncthreads();  // the chunk before has been read
        for (int v = row; v < kChunk; v += kRows) {
          const bool there = used && chunk + v < params.channels;
          const T value =
              there ? fade * params.windows[(n * params.channels + chunk + v) * params.plane + pixel] : T(0);
          shared.windows[v][lane] = value;
          if (there && first == 0) {
            softmax.add(sharpness * value, params.offsets[chunk + v], params.offsets[params.channels + chunk + v]);
          }
        }
        for (int c = row; c < kTokens; c += kRows) {
          for (int v = lane; v < kChunk; v += kWarp) {
            const bool there = first + c < params.token_channels && chunk + v < params.channels;
            shared.weights[c][v / Quad<T>::kCount].values[v % Quad<T>::kCount] =
                there ? params.weight[(first + c) * (params.channels + 3) + chunk + v] : T(0);
          }
        }
        __syncthreads();
#pragma unroll 4  // all at once would need more registers than there are
        for (int v = 0; v < kChunk && params.token_channels > 0; v += Quad<T>::kCount) {
          Quad<T> weights[kOwnTokens];
#pragma unroll
          for (int i = 0; i < kOwnTokens; ++i) weights[i] = shared.weights[row + i * kRows][v / Quad<T>::kCount];
#pragma unroll
          for (int j = 0; j < Quad<T>::kCount; ++j) {
            const T value = shared.windows[v + j][lane];
#pragma unroll
            for (int i = 0; i < kOwnTokens; ++i) sums[i] += weights[i].values[j] * value;
          }
        }
      }
      if (first == 0) {
        shared.parts[0][row][lane] = softmax.top;
        shared.parts[1][row][lane] = softmax.total;
        shared.parts[2][row][lane] = softmax.x;
        shared.parts[3][row][lane] = softmax.y;
        __syncthreads();
        if (row == 0) {
          // A warp that had no channel has a top of -inf, a total of 0, and so no part.
          T top = shared.parts[0][0][lane], total = 0, x = 0, y = 0;
          for (int r = 1; r < kRows; ++r) {
            const T other = shared.parts[0][r][lane];
            if (!(other <= top)) top = other;
          }
          for (int r = 0; r < kRows; ++r) {
            if (shared.parts[1][r][lane] == T(0)) continue;
            const T scale = exponential(shared.parts[0][r][lane] - top);
            total += scale * shared.parts[1][r][lane];
            x += scale * shared.parts[2][r][lane];
            y += scale * shared.parts[3][r][lane];
          }
          const T match[3] = {x / total, y / total, -logarithm(total)};
          for (int m = 0; m < 3; ++m) {
            shared.matches[m][lane] = match[m];
            if (used) params.matches[(n * 3 + m) * params.plane + pixel] = match[m];
          }
        }
        __syncthreads();
      }
      for (int i = 0; i < kOwnTokens; ++i) {
        const int64_t c = first + row + i * kRows;
        if (c >= params.token_channels || !used) continue;
        const T* weight = params.weight + c * (params.channels + 3) + params.channels;
        T value = sums[i] + params.bias[c];
        for (int m = 0; m < 3; ++m) value += weight[m] * shared.matches[m][lane];
        value = gate * (value > 0 ? value : static_cast<T>(kTokenSlope) * value);
        params.tokens[(n * params.token_channels + c) * params.plane + pixel] = static_cast<O>(value);
      }
      __syncthreads();  // the matches have been read
    }
  }
}

std::tuple<Tensor, Tensor> read_windows(Tensor windows, std::optional<Tensor> fade, std::optional<Tensor> gate,
                                        Tensor offsets, Tensor log_sharpness, std::optional<Tensor> weight,
                                        std::optional<Tensor> bias) {
  const char* op = "read_windows";
  check_read_windows(op, windows, fade, gate, offsets, log_sharpness, weight, bias);
  const DeviceCall call(op, windows);
  const ScalarType exact = windows.scalar_type();
  const int64_t count = windows.size(0), height = windows.size(2), width = windows.size(3);
  const int64_t token_channels = weight.has_value() ? weight->size(0) : 0;
  const ScalarType dtype = weight.has_value() ? weight->scalar_type() : exact;
  const Tensor tokens = allocate(op, windows, {count, token_channels, height, width}, dtype);
  const Tensor matches = allocate(op, windows, {count, 3, height, width}, exact);
  if (matches.numel() == 0) return {tokens, matches};
  const Tensor values = converted(windows, exact), places = converted(offsets, exact);
  for (std::optional<Tensor>* tensor : {&fade, &gate, &weight, &bias}) convert(*tensor, exact);
  with_feature_type(dtype, [&](auto token) {
    using O = decltype(token);
    using T = SumType<O>;
    const WindowReading<T, O> params{data<T>(values),          data_or_null<T>(fade),
                                     data_or_null<T>(gate),    data<T>(places),
                                     data<T>(log_sharpness),   data_or_null<T>(weight),
                                     data_or_null<T>(bias),    mutable_data<O>(tokens),
                                     mutable_data<T>(matches), count,
                                     windows.size(1),          token_channels,
                                     height * width,           fade.has_value() ? fade->size(0) : 1};
    const int64_t blocks = count * ((params.plane + kWarp - 1) / kWarp);
    call.launch(read_blocks<T, O>, blocks_for(blocks, 1), dim3(kWarp, kRows), sizeof(Shared<T>), params);
  });
  return {tokens, matches};
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("read_windows", TORCH_BOX(&flowfuse::cuda::read_windows));
}
