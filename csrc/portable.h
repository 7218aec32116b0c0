// What arithmetic that host and device share is written with.
#pragma once

#include <cstdint>

#if defined(__CUDACC__)
#define FLOWFUSE_INLINE __host__ __device__ __forceinline__
#else
// Forced: the CPU variants (cpu/dispatch.h) must hold their own copy, compiled for their instruction set.
#define FLOWFUSE_INLINE inline __attribute__((always_inline))
#endif
#define FLOWFUSE_INLINE_LAMBDA __attribute__((always_inline))

namespace flowfuse {

// Number of bits that a count, not negative, takes.
FLOWFUSE_INLINE int bit_length(int64_t count) {
#if defined(__CUDA_ARCH__)
  return 64 - __clzll(count);
#else
  return count == 0 ? 0 : 64 - __builtin_clzll(static_cast<unsigned long long>(count));
#endif
}

}  // namespace flowfuse
