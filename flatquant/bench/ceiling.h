#pragma once

#include <string>
#include <vector>

#include "flatquant/kernels/limits/limits.h"

namespace flatquant::bench {

// What a result is held against.
struct Ceiling {
  double per_second = 0;  // operations or bytes; 0: not known
  std::string name;       // "AMX-INT8", "memory"

  // 100 where work (operations or bytes) takes `seconds` at best; -1 if not known.
  double PercentOf(double work, double seconds) const {
    return per_second > 0 && seconds > 0 ? 100 * work / seconds / per_second : -1;
  }
};

// The peak of the instructions that the dispatched kernels multiply with: integers,
// and bfloat16 or float. A multiply-add counts as two operations.
Ceiling IntegerPeak(const CpuLimits& limits);
Ceiling FloatPeak(const CpuLimits& limits);
Ceiling ReadBandwidth(const CpuLimits& limits);

// Field by field the larger of two measurements: what the machine has shown it can do.
CpuLimits Larger(const CpuLimits& a, const CpuLimits& b);

// "GemmInt X86AmxInt8", ...: the kernels that the dispatch takes, all operations.
std::vector<std::string> KernelsInUse();

}  // namespace flatquant::bench
