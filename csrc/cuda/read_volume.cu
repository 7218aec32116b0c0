// Windows of a stored volume that are looked up and read at once: they stay in shared memory.
#include <optional>
#include <tuple>
#include <type_traits>
#include <vector>

#include "cuda/read_windows.cuh"
#include "cuda/volume_patches.cuh"
#include "operators/read_lookup.h"

namespace flowfuse::cuda {
namespace {

static_assert(kMostPixels == kWarp && kRows * kWarp == kThreads, "a block reads the windows of a patch");

// Columns of windows in a chunk: what is left of it is less than one.
FLOWFUSE_INLINE int most_columns(int side) { return smaller(side, kChunk / side); }

// Values of the windows of a patch, from its column on.
template <class T>
struct PatchChunk {
  Patch<T> patch;
  Reach reach;  // of the thread's own pixel
  Corners<T> corners;
  int first;

  __device__ __forceinline__ T value(int v) const {
    return value_of(patch, reach, corners, static_cast<int>(threadIdx.x), first + v);
  }
};

template <class T>
struct VolumeWindows {
  const VolumeLevels<T>& levels;
  void* memory;

  // Of the column of the window of its level that a chunk begins with.
  __device__ __forceinline__ int column(int64_t begin) const {
    return static_cast<int>(begin % levels.value_count()) / levels.value_side();
  }
  __device__ __forceinline__ int columns(int64_t begin) const {
    return smaller(most_columns(levels.value_side()), levels.value_side() - column(begin));
  }
  __device__ __forceinline__ int size(int64_t begin) const { return columns(begin) * levels.value_side(); }

  __device__ __forceinline__ PatchChunk<T> load(int64_t n, int64_t first, int64_t begin) const {
    const int level = static_cast<int>(begin / levels.value_count());
    const Patch<T> patch =
        load_patch(levels, n * patches_of(levels) + first / kWarp, level, column(begin), columns(begin) + 1, memory);
    __syncthreads();
    read_taps(levels, patch);
    const Window<T>& window = patch.windows[smaller(static_cast<int>(threadIdx.x), patch.count - 1)];
    return {patch, window.reach, corners_of(window), patch.column * levels.value_side()};
  }
};

template <class T, class O>
__global__ void __launch_bounds__(kRows* kWarp, 2)
    read_volume_windows(VolumeLevels<T> levels, WindowReading<T, O> params) {
  ReadingMemory<T>& shared = *shared_memory<ReadingMemory<T>>();
  read_pixels(VolumeWindows<T>{levels, &shared + 1}, params, shared);
}

template <class T, class O>
void launch_reading(const DeviceCall& call, const WindowReading<T, O>& params, const VolumeLevels<T>& levels) {
  const int taps = (most_columns(levels.value_side()) + 1) * levels.tap_side();
  const size_t bytes = sizeof(ReadingMemory<T>) + patch_bytes<T>(kWarp, taps);
  call.launch(read_volume_windows<T, O>, reading_blocks(params), dim3(kWarp, kRows), bytes, levels, params);
}

std::tuple<Tensor, Tensor> read_volume(std::vector<Tensor> volumes, Tensor coords, int64_t radius,
                                       std::optional<Tensor> fade, std::optional<Tensor> gate, Tensor offsets,
                                       Tensor log_sharpness, std::optional<Tensor> weight, std::optional<Tensor> bias) {
  const char* op = "read_volume";
  const ReadingArguments given{fade, gate, offsets, log_sharpness, weight, bias};
  const WindowSizes sizes = check_read_volume(op, volumes, coords, radius, given);
  const DeviceCall call(op, coords);
  const Tensor points = converted(coords, coords.scalar_type());
  const std::vector<Tensor> maps = contiguous(volumes);
  return make_reading<true>(op, sizes, given, [&](const auto& params) {
    launch_reading(call, params,
                   levels_of<typename std::decay_t<decltype(params)>::Value>(points, maps, radius, nullptr));
  });
}

}  // namespace
}  // namespace flowfuse::cuda

STABLE_TORCH_LIBRARY_IMPL(flowfuse, FLOWFUSE_CUDA_KEY, m) {
  m.impl("read_volume", TORCH_BOX(&flowfuse::cuda::read_volume));
}
