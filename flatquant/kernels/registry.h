#pragma once

#include <string_view>
#include <vector>

#include "flatquant/kernels/isa.h"

namespace flatquant {

// A line of kernels.inc. Kernel is the operation's struct of functions.
template <typename Kernel>
struct KernelEntry {
  std::string_view name;  // the variant: "X86Avx512Vnni"
  Isa isa;
  const Kernel* kernel;
};

// All kernels of an operation, best first, the reference last. Defined in
// registry.cc for every Kernel type of kernels.inc.
template <typename Kernel>
const std::vector<KernelEntry<Kernel>>& KernelsOf();

// The best one that this CPU can run within IsaLimit().
template <typename Kernel>
const KernelEntry<Kernel>& BestKernel() {
  static const KernelEntry<Kernel>& best = [&]() -> const KernelEntry<Kernel>& {
    const Isa limit = IsaLimit();
    const auto& kernels = KernelsOf<Kernel>();
    for (const auto& entry : kernels) {
      if (entry.isa <= limit && CpuHas(GetCpuFeatures(), entry.isa)) return entry;
    }
    return kernels.back();
  }();
  return best;
}

}  // namespace flatquant
