// What every CUDA launcher needs: device guard, torch's current stream, grid size, launch and its check.
//
// The .cu files hold the operators' device code, launchers and registrations; what two of them share is in a .cuh file.
// Only this interface and cuda_runtime.h stand between them and the device, so that tests/emulator can run the same
// files on a CPU.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <memory>
#include <type_traits>
#include <utility>

#include "tensors.h"
#include "portable.h"

#ifndef FLOWFUSE_CUDA_KEY
#define FLOWFUSE_CUDA_KEY CUDA  // dispatch key of the kernels in csrc/cuda
#endif

#ifndef FLOWFUSE_MOST_BLOCKS
#define FLOWFUSE_MOST_BLOCKS 1048576  // of a launch: a block goes through its items in a loop
#endif

// A device function that touches nothing but its thread's registers. The emulator, which records accesses to memory,
// names it otherwise: registers are memory there.
#ifndef FLOWFUSE_ARITHMETIC
#define FLOWFUSE_ARITHMETIC __device__ __forceinline__
#endif

namespace flowfuse::cuda {

constexpr int kThreads = 256;  // of a block, where nothing speaks for another number
constexpr int kWarp = 32;
constexpr unsigned kWholeWarp = 0xffffffffu;
constexpr size_t kSharedLimit = 48 * 1024;  // bytes a block may use on every device without asking

// All shared memory is dynamic: a kernel declares what it needs as a struct or a pointer, its launcher passes
// the size.
extern __shared__ __align__(16) unsigned char shared_arena[];

template <class Layout>
__device__ __forceinline__ Layout* shared_memory() {
  return reinterpret_cast<Layout*>(shared_arena);
}

template <class T>
FLOWFUSE_INLINE T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
FLOWFUSE_INLINE T larger(T a, T b) {
  return a < b ? b : a;
}

// What one instruction moves: 16 bytes.
template <class T>
struct alignas(16) Quad {
  static constexpr int kCount = 16 / static_cast<int>(sizeof(T));
  T values[kCount];
};

// Copies from global to shared memory while the thread goes on. The values are there for this thread after
// copies_done(), for others after a barrier behind it.
template <class T>
__device__ __forceinline__ void copy_async(Quad<T>* shared, const Quad<T>* global) {
#if defined(__CUDA_ARCH__)
  const unsigned target = static_cast<unsigned>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target), "l"(global) : "memory");
#elif defined(FLOWFUSE_COPY_ASYNC)  // the emulator's
  FLOWFUSE_COPY_ASYNC(shared, global);
#endif
}

__device__ __forceinline__ void copies_done() {
#if defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_all;" ::: "memory");
#elif defined(FLOWFUSE_COPIES_DONE)
  FLOWFUSE_COPIES_DONE();
#endif
}

// sums += a b^T of a 16 x 16 and an 8 x 16 matrix, by a whole warp on the tensor cores. Lane 4 g + q holds, two numbers
// in a register, columns 2 q and 2 q + 1 (2 q + 8 and 2 q + 9) of rows g and g + 8 of a: a[0], a[1] (a[2], a[3]); and of
// row g of b: b[0] (b[1]). Of the sums it has rows g, g and g + 8, g + 8 in columns 2 q, 2 q + 1, 2 q, 2 q + 1.
template <class F>
__device__ __forceinline__ void multiply_matrices(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  constexpr bool kHalf = std::is_same_v<F, torch::headeronly::Half>;
#if defined(__CUDA_ARCH__)
#define FLOWFUSE_MULTIPLY(type)                                              \
  asm("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                 \
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])           \
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
  if constexpr (kHalf) {
    FLOWFUSE_MULTIPLY("f16");
  } else {
    FLOWFUSE_MULTIPLY("bf16");
  }
#undef FLOWFUSE_MULTIPLY
#elif defined(FLOWFUSE_MULTIPLY_MATRICES)  // the emulator's
  FLOWFUSE_MULTIPLY_MATRICES(kHalf, sums, a, b);
#endif
}

// Integers that threads add up atomically, in two's complement: the type that atomicAdd takes.
using AtomicSum = unsigned long long;

// Adds 1 to counters[item] for each lane of a whole warp that `counts`: lanes of the same item, which most are, by one
// addition. A counter is one address, where additions wait for each other.
__device__ __forceinline__ void count_together(AtomicSum* counters, int64_t item, bool counts) {
  const unsigned votes = __ballot_sync(kWholeWarp, counts);
  if (votes == 0) return;
  const int leader = __ffs(static_cast<int>(votes)) - 1;
  const int64_t first = __shfl_sync(kWholeWarp, item, leader);
  const unsigned same = __ballot_sync(kWholeWarp, counts && item == first);
  if (static_cast<int>(threadIdx.x) % kWarp == leader) {
    atomicAdd(counters + first, static_cast<AtomicSum>(__popc(same)));
  } else if (counts && item != first) {
    atomicAdd(counters + item, AtomicSum{1});
  }
}

constexpr int64_t kMaxGridY = 65535;

// Index of this thread in a one-dimensional grid, and the step to its next item.
__device__ __forceinline__ int64_t first_item() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t item_step() { return int64_t{gridDim.x} * blockDim.x; }

// Blocks for kernels whose threads go through `items` from first_item() in steps of item_step().
inline unsigned blocks_for(int64_t items, int threads = kThreads) {
  return static_cast<unsigned>(std::min<int64_t>((items + threads - 1) / threads, FLOWFUSE_MOST_BLOCKS));
}

// A grid over the items of a batch (y, in a loop) and `each` things of an item (x, in a loop).
inline dim3 batch_grid(int64_t each, int64_t items) {
  return dim3(blocks_for(each), static_cast<unsigned>(std::min(items, kMaxGridY)));
}

// One operator call on a device: while it lives, the tensor's device is the current one.
class DeviceCall {
 public:
  DeviceCall(const char* op, const Tensor& tensor);

  // Launches `kernel` on torch's current stream. An empty grid is no launch.
  template <class... Parameters, class... Arguments>
  void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
              Arguments&&... arguments) const {
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) return;
    if (shared_bytes > kSharedLimit) {
      check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
    }
    cudaLaunchConfig_t config{};
    config.gridDim = grid;
    config.blockDim = block;
    config.dynamicSmemBytes = shared_bytes;
    config.stream = stream_;
    check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
  }

  // Sets the bytes of a tensor to zero.
  void clear(const Tensor& tensor) const {
    const size_t bytes = static_cast<size_t>(tensor.numel()) * tensor.element_size();
    if (bytes > 0) check(cudaMemsetAsync(tensor.mutable_data_ptr(), 0, bytes, stream_));
  }

 private:
  void check(cudaError_t error) const;

  const char* op_;
  cudaStream_t stream_;
  std::shared_ptr<torch::stable::accelerator::DeviceGuard> guard_;  // none in the emulator
};

}  // namespace flowfuse::cuda
