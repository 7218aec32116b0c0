// One binary for all x86-64 machines: hot loops are compiled for several instruction sets and one is chosen
// when the library is first used.
#pragma once

#include <string>

#if defined(__x86_64__) && defined(__GNUC__)
#define FLOWFUSE_X86 1
#endif
// Products of bfloat16 are written in assembly, which clang accepts only in functions of their instruction set.
#if defined(FLOWFUSE_X86) && !defined(__clang__) && __GNUC__ >= 11
#define FLOWFUSE_BFLOAT16_PRODUCTS 1
#endif

namespace flowfuse::cpu {

enum class CpuCapability { kDefault, kAvx2, kAvx512, kAvx512Bf16 };

// The best one this machine has, or the one FLOWFUSE_CPU_CAPABILITY (a name as below) asks for.
CpuCapability cpu_capability();
std::string cpu_capability_name();
std::string cpu_capabilities_compiled();

}  // namespace flowfuse::cpu

// FLOWFUSE_VARIANTS(call) runs `call`, an expression whose functions are all FLOWFUSE_INLINE, compiled for the
// chosen instruction set, whose vectors have kVectorBytes. The lambdas have internal linkage: no inline function
// compiled for a newer processor can be picked by the linker for an older one. (avx512 and avx512_bf16
// differ in the products of bfloat16 alone, which choose for themselves.)
#define FLOWFUSE_VARIANT(bytes, ...)                     \
  {                                                      \
    [[maybe_unused]] constexpr int kVectorBytes = bytes; \
    __VA_ARGS__;                                         \
  }
#if FLOWFUSE_X86
#define FLOWFUSE_TARGET_AVX2 __attribute__((target("avx2,fma")))
#if defined(__clang__)  // which knows no width to prefer
#define FLOWFUSE_TARGET_AVX512 __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#else
#define FLOWFUSE_TARGET_AVX512 \
  __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,prefer-vector-width=512")))
#endif
#define FLOWFUSE_VARIANTS(...)                                              \
  switch (::flowfuse::cpu::cpu_capability()) {                              \
    case ::flowfuse::cpu::CpuCapability::kAvx512Bf16:                       \
    case ::flowfuse::cpu::CpuCapability::kAvx512:                           \
      [&]() FLOWFUSE_TARGET_AVX512 { FLOWFUSE_VARIANT(64, __VA_ARGS__) }(); \
      break;                                                                \
    case ::flowfuse::cpu::CpuCapability::kAvx2:                             \
      [&]() FLOWFUSE_TARGET_AVX2 { FLOWFUSE_VARIANT(32, __VA_ARGS__) }();   \
      break;                                                                \
    default: [&]() { FLOWFUSE_VARIANT(16, __VA_ARGS__) }();                 \
  }
#else
#define FLOWFUSE_VARIANTS(...) FLOWFUSE_VARIANT(16, __VA_ARGS__)
#endif
