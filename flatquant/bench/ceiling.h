#pragma once

#include <string>
#include <vector>

#include "flatquant/base/thread_pool.h"
#include "flatquant/bench/result.h"
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

// Results that are held against limits measured just before the first and just after
// the last of them.
class LimitedResults {
 public:
  explicit LimitedResults(ThreadPool& pool) : pool_(pool), before_(MeasureLimits(pool)) {}

  // work_per_second: the result's, operations or bytes; of: which limit it has, nullptr
  // for none.
  void Add(Result result, double work_per_second = 0, Ceiling (*of)(const CpuLimits&) = nullptr);

  // Measures again; percentages are of the larger of the two. Called once, at the end.
  void Finish(Run* run);

 private:
  struct Entry {
    Result result;
    double work_per_second;
    Ceiling (*of)(const CpuLimits&);
  };
  ThreadPool& pool_;
  CpuLimits before_;
  std::vector<Entry> entries_;
};

// "GemmInt X86AmxInt8", ...: the kernels that the dispatch takes, all operations.
std::vector<std::string> KernelsInUse();

}  // namespace flatquant::bench
