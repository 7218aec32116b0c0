// Correlation windows to matches and tokens: windows are read once.
#include <optional>
#include <tuple>

#include "cuda/read_windows.cuh"

namespace flowfuse::cuda {
namespace {

template <class T>
struct StoredChunk {
  const T* values;
  int64_t plane;
  __device__ __forceinline__ T value(int v) const { return values[v * plane]; }
};

// Windows [N, V, h w] in memory.
template <class T>
struct StoredWindows {
  const T* values;
  int64_t channels, plane;

  __device__ __forceinline__ int size(int64_t begin) const {
    return static_cast<int>(smaller<int64_t>(kChunk, channels - begin));
  }
  __device__ __forceinline__ StoredChunk<T> load(int64_t n, int64_t first, int64_t begin) const {
    return {values + (n * channels + begin) * plane + first + threadIdx.x, plane};
  }
};

template <class T, class O>
__global__ void __launch_bounds__(kRows* kWarp, 2)
    read_stored_windows(StoredWindows<T> windows, WindowReading<T, O> params) {
  read_pixels(windows, params, *shared_memory<ReadingMemory<T>>());
}

template <class T, class O>
void launch_reading(const DeviceCall& call, const WindowReading<T, O>& params, const Tensor& windows) {
  call.launch(read_stored_windows<T, O>, reading_blocks(params), dim3(kWarp, kRows), sizeof(ReadingMemory<T>),
              StoredWindows<T>{data<T>(windows), params.channels, params.plane}, params);
}

std::tuple<Tensor, Tensor> read_windows(Tensor windows, std::optional<Tensor> fade, std::optional<Tensor> gate,
                                        Tensor offsets, Tensor log_sharpness, std::optional<Tensor> weight,
                                        std::optional<Tensor> bias) {
  const char* op = "read_windows";
  const ReadingArguments given{fade, gate, offsets, log_sharpness, weight, bias};
  const WindowSizes sizes = check_read_windows(op, windows, given);
  const DeviceCall call(op, windows);
  const Tensor values = converted(windows, sizes.dtype);
  return make_reading<true>(op, sizes, given, [&](const auto& params) { launch_reading(call, params, values); });
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("read_windows", TORCH_BOX(&flowfuse::cuda::read_windows));
}
