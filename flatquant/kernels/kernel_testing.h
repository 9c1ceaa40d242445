#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/rng.h"
#include "flatquant/kernels/registry.h"

// What the tests of the operations share.
namespace flatquant::kernel_testing {

inline constexpr double kEpsilon = 0x1p-24;  // of one rounding to float, relative

inline AlignedBuffer<float> RandomFloats(Rng& rng, int64_t n, double deviation = 1.0) {
  AlignedBuffer<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
  return values;
}

// A size in [1, limit], odd ones and small ones often.
inline int64_t RandomSize(Rng& rng, int64_t limit) {
  const uint64_t top = rng.Below(2) == 0 ? static_cast<uint64_t>(limit)
                                         : static_cast<uint64_t>(std::min<int64_t>(limit, 9));
  return 1 + static_cast<int64_t>(rng.Below(top));
}

// Collects the worst of many comparisons with their own tolerances.
class Worst {
 public:
  void Compare(double actual, double expected, double tolerance, int64_t i, int64_t j) {
    const double error = std::abs(actual - expected);
    const double ratio = error / (tolerance + 1e-300);
    if (ratio <= ratio_ && !std::isnan(error)) return;
    if (std::isnan(ratio_)) return;
    ratio_ = ratio;
    actual_ = actual;
    expected_ = expected;
    tolerance_ = tolerance;
    i_ = i;
    j_ = j;
  }

  // Fails the test, showing the worst cell, when it is out of tolerance.
  void Check() const {
    EXPECT_LE(ratio_, 1.0) << "at [" << i_ << ", " << j_ << "]: " << actual_ << " instead of "
                           << expected_ << ", tolerance " << tolerance_;
  }

 private:
  double ratio_ = 0;
  double actual_ = 0;
  double expected_ = 0;
  double tolerance_ = 0;
  int64_t i_ = 0;
  int64_t j_ = 0;
};

// Calls test(entry) for each kernel of the operation that this CPU can run.
template <typename Kernel, typename Test>
void ForEachKernel(const Test& test) {
  for (const KernelEntry<Kernel>& entry : KernelsOf<Kernel>()) {
    if (!CpuHas(GetCpuFeatures(), entry.isa)) continue;
    SCOPED_TRACE(entry.name);
    test(*entry.kernel);
  }
}

// Calls test(rng) with a fresh generator per round; a failure shows the seed.
template <typename Test>
void ForEachSeed(uint64_t rounds, const Test& test) {
  for (uint64_t seed = 1; seed <= rounds; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    test(rng);
    if (::testing::Test::HasFailure()) return;
  }
}

}  // namespace flatquant::kernel_testing
