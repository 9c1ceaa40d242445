#include "flatquant/base/cpu_features.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace flatquant {
namespace {

// Linux gives tile registers to a process only on request (arch_prctl).
bool RequestAmx() {
  constexpr int kArchReqXcompPerm = 0x1023;
  constexpr int kXfeatureXtileData = 18;
  return ::syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureXtileData) == 0;
}

CpuFeatures Detect() {
  CpuFeatures features;
  __builtin_cpu_init();
  features.avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  features.avx512 = features.avx2 && __builtin_cpu_supports("avx512f") &&
                    __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vl");
  features.avx512vnni = features.avx512 && __builtin_cpu_supports("avx512vnni");
  features.avx512bf16 = features.avx512vnni && __builtin_cpu_supports("avx512bf16");
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (features.avx512vnni && __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) != 0) {
    constexpr unsigned kAmxBf16 = 1u << 22;
    constexpr unsigned kAmxTile = 1u << 24;
    constexpr unsigned kAmxInt8 = 1u << 25;
    const bool tiles = (edx & kAmxTile) != 0 && RequestAmx();
    features.amxbf16 = tiles && (edx & kAmxBf16) != 0 && features.avx512bf16;
    features.amxint8 = tiles && (edx & kAmxInt8) != 0;
  }
  return features;
}

}  // namespace

const CpuFeatures& GetCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

std::string CpuFeatureNames() {
  const CpuFeatures& features = GetCpuFeatures();
  std::string names = "x86-64";
  if (features.avx2) names += " avx2";
  if (features.avx512) names += " avx512";
  if (features.avx512vnni) names += " avx512vnni";
  if (features.avx512bf16) names += " avx512bf16";
  if (features.amxbf16) names += " amxbf16";
  if (features.amxint8) names += " amxint8";
  return names;
}

}  // namespace flatquant
