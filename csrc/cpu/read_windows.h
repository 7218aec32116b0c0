// What is made of the windows of some pixels while they are in the cache: matches and tokens.
#pragma once

#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <tuple>

#include "cpu/elementary.h"
#include "cpu/vector.h"
#include "operators/read_windows.h"

namespace flowfuse::cpu {

constexpr int64_t kBlock = 64;     // pixels handled together
constexpr int64_t kVectors = 2;    // of pixels, and
constexpr int64_t kTokenRows = 8;  // channels of tokens, whose sums are in registers at once

// Pixels of item n in runs of `count`, which lie `step` apart in the image from `first` on; in a block, run r has the
// lanes from r * lanes. Other lanes hold numbers without a meaning.
struct PixelBlock {
  int64_t n, first, step;
  int64_t runs, count, lanes;

  // Calls visit(lane of the block, pixel of the image) for all pixels.
  template <class Visit>
  FLOWFUSE_INLINE void visit(const Visit& each) const {
    for (int64_t run = 0; run < runs; ++run) {
      for (int64_t x = 0; x < count; ++x) each(run * lanes + x, first + run * step + x);
    }
  }
};

template <class T>
FLOWFUSE_INLINE void load_fade(const WindowReading<T, T>& params, const PixelBlock& block, T* fade) {
  for (int64_t x = 0; x < kBlock; ++x) fade[x] = T(1);
  if (params.fade == nullptr) return;
  const T* from = params.fade + block.n % params.fades * params.plane;
  block.visit([&](int64_t lane, int64_t pixel) FLOWFUSE_INLINE_LAMBDA { fade[lane] = from[pixel]; });
}

// Values of channel v of a block, faded, and the largest of each pixel so far. `from` may be `to`.
template <class T>
FLOWFUSE_INLINE void fade_values(int64_t v, const T* from, const T* fade, T* to, T* top) {
#pragma GCC ivdep
  for (int64_t x = 0; x < kBlock; ++x) {
    const T value = from[x] * fade[x];
    to[x] = value;
    top[x] = v == 0 || value > top[x] ? value : top[x];
  }
}

// The moments of the softmax: rows V .. V + 2 of `values`.
template <class T>
FLOWFUSE_INLINE void match_windows(const WindowReading<T, T>& params, T sharpness, T* values, const T* top) {
  T total[kBlock], sum_x[kBlock], sum_y[kBlock];
  for (int64_t x = 0; x < kBlock; ++x) total[x] = sum_x[x] = sum_y[x] = T(0);
  for (int64_t v = 0; v < params.channels; ++v) {
    const T* value = values + v * kBlock;
    const T offset_x = params.offsets[v], offset_y = params.offsets[params.channels + v];
#pragma GCC ivdep
    for (int64_t x = 0; x < kBlock; ++x) {
      const T weight = exponential(value[x] * sharpness - top[x] * sharpness);
      total[x] += weight;
      sum_x[x] += weight * offset_x;
      sum_y[x] += weight * offset_y;
    }
  }
  T* matches = values + params.channels * kBlock;
#pragma GCC ivdep
  for (int64_t x = 0; x < kBlock; ++x) {
    matches[x] = sum_x[x] / total[x];
    matches[kBlock + x] = sum_y[x] / total[x];
    matches[2 * kBlock + x] = -logarithm(total[x]);
  }
}

// kRows channels of tokens from `channel` on.
template <int kBytes, int kRows, class T>
FLOWFUSE_INLINE void make_tokens(const WindowReading<T, T>& params, const PixelBlock& block, const T* values,
                                 int64_t channel) {
  constexpr int64_t kStep = kVectors * kLanes<T, kBytes>;
  const int64_t rows = params.channels + 3;
  T result[kRows][kBlock];
  for (int64_t x = 0; x < kBlock; x += kStep) {
    Vector<T, kBytes> sums[kRows][kVectors];
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVectors; ++i) sums[r][i] = Vector<T, kBytes>{} + params.bias[channel + r];
    }
    const T* weight = params.weight + channel * rows;
    for (int64_t v = 0; v < rows; ++v) {
      Vector<T, kBytes> value[kVectors];
#pragma GCC unroll 2
      for (int i = 0; i < kVectors; ++i) load(values + v * kBlock + x + i * kLanes<T, kBytes>, value[i]);
#pragma GCC unroll 8
      for (int r = 0; r < kRows; ++r) {
        const T factor = weight[r * rows + v];
#pragma GCC unroll 2
        for (int i = 0; i < kVectors; ++i) sums[r][i] += value[i] * factor;
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int i = 0; i < kVectors; ++i) store(sums[r][i], &result[r][x + i * kLanes<T, kBytes>]);
    }
  }
  const T slope = static_cast<T>(kTokenSlope);
  const T* gate = params.gate == nullptr ? nullptr : params.gate + block.n * params.plane;
  for (int r = 0; r < kRows; ++r) {
    T* to = params.tokens + (block.n * params.token_channels + channel + r) * params.plane;
    block.visit([&](int64_t lane, int64_t pixel) FLOWFUSE_INLINE_LAMBDA {
      const T value = result[r][lane] > 0 ? result[r][lane] : slope * result[r][lane];
      to[pixel] = gate == nullptr ? value : gate[pixel] * value;
    });
  }
}

// Matches and tokens of a block whose faded windows are in `values` [V + 3][kBlock], the largest values in `top`.
template <int kBytes, class T>
FLOWFUSE_INLINE void read_block(const WindowReading<T, T>& params, const PixelBlock& block, T sharpness, T* values,
                                const T* top) {
  match_windows(params, sharpness, values, top);
  for (int64_t m = 0; m < 3; ++m) {
    T* to = params.matches + (block.n * 3 + m) * params.plane;
    const T* from = values + (params.channels + m) * kBlock;
    block.visit([&](int64_t lane, int64_t pixel) FLOWFUSE_INLINE_LAMBDA { to[pixel] = from[lane]; });
  }
  int64_t channel = 0;
  for (; channel + kTokenRows <= params.token_channels; channel += kTokenRows) {
    make_tokens<kBytes, kTokenRows>(params, block, values, channel);
  }
  for (; channel < params.token_channels; ++channel) make_tokens<kBytes, 1>(params, block, values, channel);
}

template <class T>
T sharpness_of(const WindowReading<T, T>& params) {
  return static_cast<T>(__builtin_exp(static_cast<double>(params.log_sharpness[0])));
}

// Tokens are made in the dtype of sums, and rounded in the end where the weight is in half precision.
template <class Run>
std::tuple<Tensor, Tensor> make_exact_reading(const char* op, const WindowSizes& windows, ReadingArguments given,
                                              const Run& run) {
  const ScalarType dtype = given.weight.has_value() ? given.weight->scalar_type() : windows.dtype;
  for (std::optional<Tensor>* tensor : {&given.weight, &given.bias}) convert(*tensor, windows.dtype);
  const auto [tokens, matches] = make_reading<false>(op, windows, given, run);
  return {converted(tokens, dtype), matches};
}

}  // namespace flowfuse::cpu
