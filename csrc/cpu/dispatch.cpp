#include "cpu/dispatch.h"

#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <string>

namespace flowfuse {
namespace {

// The names in the order of CpuCapability.
constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512_bf16", "amx"};

#if FLOWFUSE_BFLOAT16_PRODUCTS
// The registers of the matrix unit are large: a process has them only where it asks the system for them.
bool allow_matrix_unit() {
#if FLOWFUSE_NO_ASSEMBLY
  return true;
#elif defined(__linux__)
  if (!__builtin_cpu_supports("amx-tile") || !__builtin_cpu_supports("amx-bf16")) return false;
  constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

CpuCapability best_capability() {
#if FLOWFUSE_X86
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
#if FLOWFUSE_BFLOAT16_PRODUCTS
    if (__builtin_cpu_supports("avx512bf16")) {
      return allow_matrix_unit() ? CpuCapability::kAmx : CpuCapability::kAvx512Bf16;
    }
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
  STD_TORCH_CHECK(found != std::end(kNames),
                  "FLOWFUSE_CPU_CAPABILITY must be default, avx2, avx512, avx512_bf16 or amx, got ", name);
  const CpuCapability chosen = static_cast<CpuCapability>(found - std::begin(kNames));
  STD_TORCH_CHECK(chosen <= best, "FLOWFUSE_CPU_CAPABILITY asks for ", name,
                  ", which this machine does not have");
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
  return "default,avx2,avx512,avx512_bf16,amx";
#elif FLOWFUSE_X86
  return "default,avx2,avx512";
#else
  return "default";
#endif
}

}  // namespace flowfuse
