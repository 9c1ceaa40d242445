#pragma once

#include <string>
#include <utility>
#include <vector>

#include "flatquant/bench/ceiling.h"
#include "flatquant/bench/gpu.h"
#include "flatquant/kernels/cuda/measure.cuh"

// What the GPU's benchmarks share.
namespace flatquant::bench {

// Sets of operands so that data comes from memory, not from the L2 cache of some 60 MB.
inline int GpuCopies(uint64_t bytes) {
  constexpr uint64_t kBeyondL2 = uint64_t{256} << 20;
  return static_cast<int>(std::clamp<uint64_t>(kBeyondL2 / std::max<uint64_t>(1, bytes), 2, 64));
}

inline LimitedResults GpuResults() {
  return LimitedResults([] { return Limits{{}, MeasureGpuLimits()}; });
}

// A line with microseconds per launch; launch(i, stream) works on the operands i % copies.
// work: operations or bytes of a launch.
inline void AddGpuResult(Result result, const Plan& plan, int copies, double work,
                         Ceiling (*of)(const Limits&),
                         const std::function<void(int, cudaStream_t)>& launch,
                         LimitedResults* results) {
  std::vector<double> values;
  for (int i = 0; i < plan.repetitions; ++i) {
    values.push_back(1e6 * cuda_bench::MedianSeconds(std::max(4, copies), launch));
  }
  result.value = Median(values);
  result.spread = Deviation(values);
  result.unit = "us";
  results->Add(std::move(result), 1e6 * work / Median(values), of);
}

}  // namespace flatquant::bench
