#include "cpu/dispatch.h"

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>

namespace flowfuse::cpu {
namespace {

// The names in the order of CpuCapability.
constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512_bf16"};

CpuCapability best_capability() {
#if FLOWFUSE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq")) {
#if FLOWFUSE_BFLOAT16_PRODUCTS
    if (__builtin_cpu_supports("avx512bf16")) return CpuCapability::kAvx512Bf16;
#endif
    return CpuCapability::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kDefault;
}

CpuCapability choose_capability() {
  const CpuCapability best = best_capability();
  const char* asked = std::getenv("FLOWFUSE_CPU_CAPABILITY");
  if (asked == nullptr || *asked == '\0') return best;
  const std::string name(asked);
  const auto found = std::find(std::begin(kNames), std::end(kNames), name);
  if (found == std::end(kNames)) {
    throw std::invalid_argument("FLOWFUSE_CPU_CAPABILITY must be default, avx2, avx512 or avx512_bf16, got " + name);
  }
  const CpuCapability chosen = static_cast<CpuCapability>(found - std::begin(kNames));
  if (chosen > best) {
    throw std::invalid_argument("FLOWFUSE_CPU_CAPABILITY asks for " + name + ", which this machine does not have");
  }
  return chosen;
}

}  // namespace

CpuCapability cpu_capability() {
  static const CpuCapability chosen = choose_capability();
  return chosen;
}

std::string cpu_capability_name() { return kNames[static_cast<int>(cpu_capability())]; }

std::string cpu_capabilities_compiled() {
#if FLOWFUSE_BFLOAT16_PRODUCTS
  return "default,avx2,avx512,avx512_bf16";
#elif FLOWFUSE_X86
  return "default,avx2,avx512";
#else
  return "default";
#endif
}

}  // namespace flowfuse::cpu
