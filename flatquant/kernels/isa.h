#pragma once

#include <string_view>

#include "flatquant/base/cpu_features.h"

namespace flatquant {

// Instruction sets that kernels are written for, in ascending order. kReference
// is plain C++ (compiled for x86-64-v3).
enum class Isa { kReference, kAvx2, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmxBf16, kAmxInt8 };

// "reference", "avx2", ...: the values of FLATQUANT_ISA.
std::string_view IsaName(Isa isa) noexcept;

bool CpuHas(const CpuFeatures& features, Isa isa) noexcept;

// The widest instruction set that kernels may use: the environment variable
// FLATQUANT_ISA's, else no limit but the CPU's. `value` is the variable's text
// or nullptr. Errors: kernels.unknown_isa, kernels.isa_unavailable (the CPU lacks
// it; the message names what it has).
Isa ParseIsaLimit(const char* value, const CpuFeatures& features);

// ParseIsaLimit of this process's environment and CPU, read once. Whoever runs
// kernels calls it first, where an exception is welcome: the operations
// themselves are noexcept.
Isa IsaLimit();

}  // namespace flatquant
