// One binary for all x86-64 machines: hot loops are compiled for several instruction sets and one is chosen
// when the library is first used.
#pragma once

#include <string>

#if defined(__x86_64__) && defined(__GNUC__)
#define FLOWFUSE_X86 1
#endif

namespace flowfuse {

enum class CpuCapability { kDefault, kAvx2, kAvx512 };

// The best one this machine has, or the one FLOWFUSE_CPU_CAPABILITY (default, avx2, avx512) asks for.
CpuCapability cpu_capability();
std::string cpu_capability_name();
std::string cpu_capabilities_compiled();

}  // namespace flowfuse

// FLOWFUSE_VARIANTS(call) runs `call`, an expression whose functions are all FLOWFUSE_INLINE, compiled for the
// chosen instruction set. The lambdas have internal linkage: no inline function compiled for a newer
// processor can be picked by the linker for an older one.
#if FLOWFUSE_X86
#define FLOWFUSE_TARGET_AVX2 __attribute__((target("avx2,fma")))
#define FLOWFUSE_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")))
#define FLOWFUSE_VARIANTS(...)                                         \
  switch (::flowfuse::cpu_capability()) {                              \
    case ::flowfuse::CpuCapability::kAvx512:                           \
      [&]() FLOWFUSE_TARGET_AVX512 { __VA_ARGS__; }();                 \
      break;                                                           \
    case ::flowfuse::CpuCapability::kAvx2:                             \
      [&]() FLOWFUSE_TARGET_AVX2 { __VA_ARGS__; }();                   \
      break;                                                           \
    default:                                                           \
      [&]() { __VA_ARGS__; }();                                        \
  }
#else
#define FLOWFUSE_VARIANTS(...) __VA_ARGS__
#endif
