#include "cpu/dispatch.h"

#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <string>

namespace flowfuse {
namespace {

// The names in the order of CpuCapability.
constexpr const char* kNames[] = {"default", "avx2", "avx512", "avx512_bf16", "amx"};

#if FLOWFUSE_MATRIX_UNIT
bool has_matrix_unit() {
#if FLOWFUSE_NO_ASSEMBLY
  return true;
#elif defined(__linux__)
  return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

// The registers of the matrix unit are large: a process has them only where it asks the system for them.
bool allow_matrix_unit() {
#if FLOWFUSE_NO_ASSEMBLY
  return true;
#elif defined(__linux__)
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
#if FLOWFUSE_MATRIX_UNIT
      if (has_matrix_unit()) return CpuCapability::kAmx;
#endif
      return CpuCapability::kAvx512Bf16;
    }
#endif
    return CpuCapability::kAvx512;
  }
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return CpuCapability::kAvx2;
#endif
  return CpuCapability::kDefault;
}

CpuCapability choose_capability() {
  CpuCapability best = best_capability();
  const char* asked = std::getenv("FLOWFUSE_CPU_CAPABILITY");
  const bool any = asked == nullptr || *asked == '\0';
#if FLOWFUSE_MATRIX_UNIT
  // Not where another set is asked for: a process cannot give back what it was allowed.
  const bool wanted = best == CpuCapability::kAmx && (any || std::strcmp(asked, kNames[4]) == 0);
  if (wanted && !allow_matrix_unit()) best = CpuCapability::kAvx512Bf16;
#endif
  if (any) return best;
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
#if FLOWFUSE_MATRIX_UNIT
  return "default,avx2,avx512,avx512_bf16,amx";
#elif FLOWFUSE_BFLOAT16_PRODUCTS
  return "default,avx2,avx512,avx512_bf16";
#elif FLOWFUSE_X86
  return "default,avx2,avx512";
#else
  return "default";
#endif
}

}  // namespace flowfuse
