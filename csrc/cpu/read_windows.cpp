// Correlation windows to matches and tokens: the windows of some pixels are read once and stay in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/elementary.h"
#include "cpu/vector.h"
#include "operators/read_windows.h"
#include "optional_tensors.h"
#include "tensors.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

constexpr int64_t kBlock = 64;     // pixels handled together
constexpr int64_t kVectors = 2;    // of pixels, and
constexpr int64_t kTokenRows = 8;  // channels of tokens, whose sums are in registers at once

// Pixels first .. first + count of item n; the lanes past `count` hold zeros.
struct WindowBlock {
  int64_t n, first, count;
};

// Copies the windows of a block, faded, to values [V + 3][kBlock], and finds the largest of each pixel.
template <class T, class O>
FLOWFUSE_INLINE void load_windows(const WindowReading<T, O>& params, const WindowBlock& block, T* values, T* top) {
  T fade[kBlock];
  for (int64_t x = 0; x < kBlock; ++x) fade[x] = T(1);
  if (params.fade != nullptr) {
    const T* from = params.fade + block.n % params.fades * params.plane + block.first;
    for (int64_t x = 0; x < block.count; ++x) fade[x] = from[x];
  }
  for (int64_t v = 0; v < params.channels; ++v) {
    const T* from = params.windows + (block.n * params.channels + v) * params.plane + block.first;
    T* to = values + v * kBlock;
    for (int64_t x = 0; x < kBlock; x += 64 / int64_t{sizeof(T)}) __builtin_prefetch(from + kBlock + x);
    if (block.count == kBlock) {
#pragma GCC ivdep
      for (int64_t x = 0; x < kBlock; ++x) to[x] = from[x] * fade[x];
    } else {
      for (int64_t x = 0; x < block.count; ++x) to[x] = from[x] * fade[x];
      for (int64_t x = block.count; x < kBlock; ++x) to[x] = T(0);
    }
#pragma GCC ivdep
    for (int64_t x = 0; x < kBlock; ++x) top[x] = v == 0 || to[x] > top[x] ? to[x] : top[x];
  }
}

// The moments of the softmax: rows V .. V + 2 of `values`.
template <class T, class O>
FLOWFUSE_INLINE void match_windows(const WindowReading<T, O>& params, T sharpness, T* values, const T* top) {
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
template <int kBytes, int kRows, class T, class O>
FLOWFUSE_INLINE void make_tokens(const WindowReading<T, O>& params, const WindowBlock& block, const T* values,
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
  const T* gate = params.gate == nullptr ? nullptr : params.gate + block.n * params.plane + block.first;
  for (int r = 0; r < kRows; ++r) {
    O* to = params.tokens + (block.n * params.token_channels + channel + r) * params.plane + block.first;
    for (int64_t x = 0; x < block.count; ++x) {
      const T value = result[r][x] > 0 ? result[r][x] : slope * result[r][x];
      to[x] = static_cast<O>(gate == nullptr ? value : gate[x] * value);
    }
  }
}

template <int kBytes, class T, class O>
FLOWFUSE_INLINE void read_block(const WindowReading<T, O>& params, const WindowBlock& block, T sharpness, T* values) {
  T top[kBlock];
  load_windows(params, block, values, top);
  match_windows(params, sharpness, values, top);
  for (int64_t m = 0; m < 3; ++m) {
    T* to = params.matches + (block.n * 3 + m) * params.plane + block.first;
    const T* from = values + (params.channels + m) * kBlock;
    for (int64_t x = 0; x < block.count; ++x) to[x] = from[x];
  }
  int64_t channel = 0;
  for (; channel + kTokenRows <= params.token_channels; channel += kTokenRows) {
    make_tokens<kBytes, kTokenRows>(params, block, values, channel);
  }
  for (; channel < params.token_channels; ++channel) make_tokens<kBytes, 1>(params, block, values, channel);
}

template <class T, class O>
void run(const WindowReading<T, O>& params) {
  const T sharpness = static_cast<T>(__builtin_exp(static_cast<double>(params.log_sharpness[0])));
  const int64_t blocks = (params.plane + kBlock - 1) / kBlock;
  parallel_for(0, params.count * blocks, 4, [&](int64_t begin, int64_t end) {
    std::vector<T> values(static_cast<size_t>((params.channels + 3) * kBlock));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % blocks * kBlock;
      const WindowBlock block{index / blocks, first, std::min(kBlock, params.plane - first)};
      FLOWFUSE_VARIANTS(read_block<kVectorBytes>(params, block, sharpness, values.data()))
    }
  });
}

std::tuple<Tensor, Tensor> read_windows(Tensor windows, std::optional<Tensor> fade, std::optional<Tensor> gate,
                                        Tensor offsets, Tensor log_sharpness, std::optional<Tensor> weight,
                                        std::optional<Tensor> bias) {
  const char* op = "read_windows";
  check_read_windows(op, windows, fade, gate, offsets, log_sharpness, weight, bias);
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
    run(WindowReading<T, O>{data<T>(values), data_or_null<T>(fade), data_or_null<T>(gate), data<T>(places),
                            data<T>(log_sharpness), data_or_null<T>(weight), data_or_null<T>(bias),
                            mutable_data<O>(tokens), mutable_data<T>(matches), count, windows.size(1), token_channels,
                            height * width, fade.has_value() ? fade->size(0) : 1});
  });
  return {tokens, matches};
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) { m.impl("read_windows", TORCH_BOX(&flowfuse::cpu::read_windows)); }
