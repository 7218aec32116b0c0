// Stands in for CUDA's header of this name: the sources of csrc/cuda, compiled by a C++ compiler with this folder
// first on the include path, run on the CPU (see emulator.cpp and README.md).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __shared__
#define __constant__ static const
#define __forceinline__ inline __attribute__((always_inline))
#define __align__(n) __attribute__((aligned(n)))
#define __launch_bounds__(...)
#define CUDART_VERSION 13000
#define FLOWFUSE_COPY_ASYNC(shared, global) ::emulator::copy_later(shared, global, sizeof *(shared))
#define FLOWFUSE_COPIES_DONE() ::emulator::finish_copies()
#define FLOWFUSE_MULTIPLY_MATRICES(half, sums, a, b) ::emulator::multiply_matrices<half>(sums, a, b, __FILE__, __LINE__)
#define FLOWFUSE_ARITHMETIC __attribute__((noinline, no_sanitize("thread")))  // of registers: not recorded

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

// Set by the scheduler before a thread runs on.
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulator {

constexpr int kWarpSize = 32;

enum class Barrier { kNone, kBlock, kWarp };

// Waits for the block, or for the lanes of `mask` in this thread's warp.
void wait(Barrier barrier, unsigned mask, const char* file, int line);
// Runs `kernel` once for every thread of the grid.
void run(dim3 grid, dim3 block, size_t shared_bytes, const void* function, const std::function<void()>& kernel);
void allow_shared(const void* function, int bytes);
// An atomic access, for the record of conflicts.
void atomic_access(const void* address, size_t bytes);
// A copy into shared memory that this thread starts, which holds NaN until it waits for all that it started.
void copy_later(void* shared, const void* global, size_t bytes);
void finish_copies();
// Slot of a lane of this thread's warp, for shuffles and votes.
uint64_t& lane_slot(unsigned lane);
unsigned lane();
[[noreturn]] void fault(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Every lane of the mask leaves a value; then each reads what it wants, before any goes on.
// The slots are not the kernel's memory: their use is not recorded.
template <class T, class Read>
__attribute__((no_sanitize("thread"))) auto exchange(unsigned mask, T value, const char* file, int line,
                                                     const Read& read) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  if (!(mask >> lane() & 1)) fault("%s:%d: lane %u is not in the mask %08x it passes", file, line, lane(), mask);
  std::memcpy(&lane_slot(lane()), &value, sizeof value);
  wait(Barrier::kWarp, mask, file, line);
  const auto result = read();
  wait(Barrier::kWarp, mask, file, line);
  return result;
}

template <class T>
__attribute__((no_sanitize("thread"))) T from_lane(unsigned mask, unsigned source, const char* file, int line) {
  if (!(mask >> source & 1)) fault("%s:%d: reads lane %u, which is not in the mask %08x", file, line, source, mask);
  T value;
  std::memcpy(&value, &lane_slot(source), sizeof value);
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, unsigned source, const char* file, int line) {
  return exchange(mask, value, file, line, [&] { return from_lane<T>(mask, source, file, line); });
}

inline unsigned ballot(unsigned mask, bool vote, const char* file, int line) {
  return exchange(mask, static_cast<uint32_t>(vote), file, line, [&] {
    unsigned votes = 0;
    for (unsigned source = 0; source < kWarpSize; ++source) {
      if ((mask >> source & 1) && from_lane<uint32_t>(mask, source, file, line)) votes |= 1u << source;
    }
    return votes;
  });
}

// The lanes of the mask that pass the same value.
inline unsigned match_any(unsigned mask, uint64_t value, const char* file, int line) {
  return exchange(mask, value, file, line, [&] {
    unsigned same = 0;
    for (unsigned source = 0; source < kWarpSize; ++source) {
      if ((mask >> source & 1) && from_lane<uint64_t>(mask, source, file, line) == value) same |= 1u << source;
    }
    return same;
  });
}

template <bool kHalf>
__attribute__((no_sanitize("thread"))) float half_value(unsigned bits) {
  const uint32_t wide = bits << 16;
  const auto narrow = static_cast<uint16_t>(bits);
  if constexpr (kHalf) {
    _Float16 value;
    std::memcpy(&value, &narrow, sizeof value);
    return static_cast<float>(value);
  } else {
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
  }
}

// The matrix instruction: what every lane holds is passed round as by shuffles, and the products of a sum are added
// one by one. launch.cuh says which lane holds what.
template <bool kHalf>
__attribute__((no_sanitize("thread"))) void multiply_matrices(float (&sums)[4], const unsigned (&a)[4],
                                                              const unsigned (&b)[2], const char* file, int line) {
  const uint64_t mine[3] = {a[0] | uint64_t{a[1]} << 32, a[2] | uint64_t{a[3]} << 32, b[0] | uint64_t{b[1]} << 32};
  uint64_t all[3][kWarpSize];
  for (int part = 0; part < 3; ++part) {
    exchange(~0u, mine[part], file, line, [&] {
      for (unsigned source = 0; source < kWarpSize; ++source) {
        all[part][source] = from_lane<uint64_t>(~0u, source, file, line);
      }
      return 0;
    });
  }
  for (unsigned n = 0; n < 4; ++n) {
    const unsigned row = lane() / 4, column = lane() % 4 * 2 + n % 2;  // row: and + 8 for the last two sums
    for (unsigned k = 0; k < 16; ++k) {
      const unsigned q = k % 8 / 2, upper = 16 * (k % 2);  // lane of the row, half of its register
      const uint64_t x = all[k / 8][row * 4 + q] >> (n / 2 * 32), y = all[2][column * 4 + q] >> (k / 8 * 32);
      sums[n] += half_value<kHalf>(static_cast<unsigned>(x) >> upper & 0xffff) *
                 half_value<kHalf>(static_cast<unsigned>(y) >> upper & 0xffff);
    }
  }
}

template <class T, class Update>
__attribute__((no_sanitize("thread"))) T atomic(T* address, const Update& update) {
  atomic_access(address, sizeof(T));
  const T before = *address;
  *address = update(before);
  return before;
}

}  // namespace emulator

#define __syncthreads() ::emulator::wait(::emulator::Barrier::kBlock, 0, __FILE__, __LINE__)
#define __syncwarp(...) \
  ::emulator::wait(::emulator::Barrier::kWarp, ::emulator::mask_or_all(__VA_ARGS__), __FILE__, __LINE__)
#define __shfl_sync(mask, value, source) ::emulator::shuffle(mask, value, (source) & 31u, __FILE__, __LINE__)
#define __shfl_xor_sync(mask, value, bits) \
  ::emulator::shuffle(mask, value, ::emulator::lane() ^ (bits), __FILE__, __LINE__)
// Past the end of the warp a lane keeps its own value.
#define __shfl_down_sync(mask, value, step)                                                                           \
  ::emulator::shuffle(mask, value,                                                                                    \
                      ::emulator::lane() + (step) < 32u ? ::emulator::lane() + (step) : ::emulator::lane(), __FILE__, \
                      __LINE__)
#define __shfl_up_sync(mask, value, step)                                                                           \
  ::emulator::shuffle(mask, value, ::emulator::lane() >= (step) ? ::emulator::lane() - (step) : ::emulator::lane(), \
                      __FILE__, __LINE__)
#define __ballot_sync(mask, vote) ::emulator::ballot(mask, vote, __FILE__, __LINE__)
#define __match_any_sync(mask, value) ::emulator::match_any(mask, value, __FILE__, __LINE__)
#define __any_sync(mask, vote) (__ballot_sync(mask, vote) != 0)
#define __all_sync(mask, vote) (__ballot_sync(mask, !(vote)) == 0)

namespace emulator {
inline unsigned mask_or_all(unsigned mask = 0xffffffffu) { return mask; }
}  // namespace emulator

template <class T>
T __ldg(const T* address) {
  return *address;
}
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __log2f(float x) { return std::log2(x); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }

template <class T>
T atomicAdd(T* address, T value) {
  return emulator::atomic(address, [&](T before) { return static_cast<T>(before + value); });
}
template <class T>
T atomicMax(T* address, T value) {
  return emulator::atomic(address, [&](T before) { return std::max(before, value); });
}
template <class T>
T atomicOr(T* address, T value) {
  return emulator::atomic(address, [&](T before) { return static_cast<T>(before | value); });
}

// ---- the part of the runtime that csrc/cuda/launch.cuh uses -------------------------------------

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0 };
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
};

template <class... Parameters>
cudaError_t cudaFuncSetAttribute(void (*kernel)(Parameters...), cudaFuncAttribute, int bytes) {
  emulator::allow_shared(reinterpret_cast<const void*>(kernel), bytes);
  return cudaSuccess;
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  static_assert((std::is_trivially_copyable_v<Parameters> && ...), "kernel parameters are copied as bytes");
  static_assert((sizeof(Parameters) + ... + 0) <= 4096, "more than 4096 bytes of kernel parameters");
  emulator::run(config->gridDim, config->blockDim, config->dynamicSmemBytes, reinterpret_cast<const void*>(kernel),
                [&] { kernel(static_cast<Parameters>(arguments)...); });
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  std::memset(address, value, bytes);
  return cudaSuccess;
}
