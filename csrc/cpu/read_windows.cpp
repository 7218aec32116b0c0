// Correlation windows to matches and tokens: the windows of some pixels are read once and stay in the cache.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <optional>
#include <tuple>
#include <vector>

#include "cpu/dispatch.h"
#include "cpu/read_windows.h"

namespace flowfuse::cpu {
namespace {

using torch::stable::parallel_for;

// Copies the windows of a block, which is one run, faded, and finds the largest value of each pixel.
template <class T>
FLOWFUSE_INLINE void load_windows(const WindowReading<T, T>& params, const T* windows, const PixelBlock& block,
                                  T* values, T* top) {
  T fade[kBlock];
  load_fade(params, block, fade);
  for (int64_t v = 0; v < params.channels; ++v) {
    const T* from = windows + (block.n * params.channels + v) * params.plane + block.first;
    T* to = values + v * kBlock;
    for (int64_t x = 0; x < kBlock; x += 64 / int64_t{sizeof(T)}) __builtin_prefetch(from + kBlock + x);
    if (block.count < kBlock) {
      for (int64_t x = 0; x < block.count; ++x) to[x] = from[x];
      for (int64_t x = block.count; x < kBlock; ++x) to[x] = T(0);
      from = to;
    }
    fade_values(v, from, fade, to, top);
  }
}

template <int kBytes, class T>
FLOWFUSE_INLINE void read_loaded(const WindowReading<T, T>& params, const T* windows, const PixelBlock& block,
                                 T sharpness, T* values) {
  T top[kBlock];
  load_windows(params, windows, block, values, top);
  read_block<kBytes>(params, block, sharpness, values, top);
}

template <class T>
void run(const WindowReading<T, T>& params, const Tensor& windows) {
  const T* from = data<T>(windows);
  const T sharpness = sharpness_of(params);
  const int64_t blocks = (params.plane + kBlock - 1) / kBlock;
  parallel_for(0, params.count * blocks, 4, [&](int64_t begin, int64_t end) {
    std::vector<T> values(static_cast<size_t>((params.channels + 3) * kBlock));
    for (int64_t index = begin; index < end; ++index) {
      const int64_t first = index % blocks * kBlock;
      const PixelBlock block{index / blocks, first, 0, 1, std::min(kBlock, params.plane - first), kBlock};
      FLOWFUSE_VARIANTS(read_loaded<kVectorBytes>(params, from, block, sharpness, values.data()))
    }
  });
}

std::tuple<Tensor, Tensor> read_windows(Tensor windows, std::optional<Tensor> fade, std::optional<Tensor> gate,
                                        Tensor offsets, Tensor log_sharpness, std::optional<Tensor> weight,
                                        std::optional<Tensor> bias) {
  const char* op = "read_windows";
  const ReadingArguments given{fade, gate, offsets, log_sharpness, weight, bias};
  const WindowSizes sizes = check_read_windows(op, windows, given);
  const Tensor values = converted(windows, sizes.dtype);
  return make_exact_reading(op, sizes, given, [&](const auto& params) { run(params, values); });
}

}  // namespace
}  // namespace flowfuse::cpu

STABLE_TORCH_LIBRARY_IMPL(flowfuse, CPU, m) { m.impl("read_windows", TORCH_BOX(&flowfuse::cpu::read_windows)); }
