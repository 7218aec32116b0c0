// What is made of windows while they are in shared memory: a block has the windows of 32 pixels, a chunk of channels at
// a time, and keeps a running softmax beside the sums of the tokens.
#pragma once

#include "cuda/launch.cuh"
#include "operators/read_windows.h"

namespace flowfuse::cuda {

constexpr int kRows = 8;                     // warps of a block, which share the channels
constexpr int kChunk = 64;                   // channels of windows in shared memory, at most
constexpr int kOwnTokens = 4;                // channels of tokens a thread sums
constexpr int kTokens = kRows * kOwnTokens;  // of a block; more of them read the windows again

__device__ __forceinline__ float exponential(float x) { return ::expf(x); }
__device__ __forceinline__ double exponential(double x) { return ::exp(x); }
__device__ __forceinline__ float logarithm(float x) { return ::logf(x); }
__device__ __forceinline__ double logarithm(double x) { return ::log(x); }

template <class T>
struct ReadingMemory {
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

// What a block of dim3(kWarp, kRows) threads does. `windows` gives the channels of the windows of 32 pixels of an item,
// a chunk at a time: windows.size(begin) of them from channel `begin` on, at most kChunk. windows.load(n, first, begin)
// is called by the whole block with the item and the first pixel; what it gives has, for a thread's own pixel, the
// value(v) of the chunk, after a barrier.
template <class Windows, class T, class O>
__device__ __forceinline__ void read_pixels(const Windows& windows, const WindowReading<T, O>& params,
                                            ReadingMemory<T>& shared) {
  const int lane = threadIdx.x, row = threadIdx.y;
  const int64_t segments = (params.plane + kWarp - 1) / kWarp;
  const T sharpness = exponential(params.log_sharpness[0]);
  for (int64_t block = blockIdx.x; block < params.count * segments; block += gridDim.x) {
    const int64_t n = block / segments, start = block % segments * kWarp, pixel = start + lane;
    const bool used = pixel < params.plane;
    const T fade = used && params.fade != nullptr ? params.fade[n % params.fades * params.plane + pixel] : T(1);
    const T gate = used && params.gate != nullptr ? params.gate[n * params.plane + pixel] : T(1);
    for (int64_t first = 0; first == 0 || first < params.token_channels; first += kTokens) {
      Softmax<T> softmax;
      T sums[kOwnTokens] = {};
      for (int64_t begin = 0; begin < params.channels; begin += windows.size(begin)) {
        const int size = windows.size(begin);
        const int whole = (size + Quad<T>::kCount - 1) / Quad<T>::kCount * Quad<T>::kCount;
        const auto chunk = windows.load(n, start, begin);
        __syncthreads();  // the chunk before has been read, and this one is there
        for (int v = row; v < whole; v += kRows) {
          const bool there = used && v < size;
          const T value = there ? fade * chunk.value(v) : T(0);
          shared.windows[v][lane] = value;
          if (there && first == 0) {
            softmax.add(sharpness * value, params.offsets[begin + v], params.offsets[params.channels + begin + v]);
          }
        }
        for (int c = row; c < kTokens; c += kRows) {
          for (int v = lane; v < whole; v += kWarp) {
            const bool there = first + c < params.token_channels && v < size;
            shared.weights[c][v / Quad<T>::kCount].values[v % Quad<T>::kCount] =
                there ? params.weight[(first + c) * (params.channels + 3) + begin + v] : T(0);
          }
        }
        __syncthreads();
#pragma unroll 4  // all at once would need more registers than there are
        for (int v = 0; v < whole && params.token_channels > 0; v += Quad<T>::kCount) {
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

// A block for each 32 pixels.
template <class T, class O>
unsigned reading_blocks(const WindowReading<T, O>& params) {
  return blocks_for(params.count * ((params.plane + kWarp - 1) / kWarp), 1);
}

}  // namespace flowfuse::cuda
