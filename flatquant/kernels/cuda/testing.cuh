#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/kernels/cuda/device_buffer.cuh"

// What the tests of the CUDA kernels share.
namespace flatquant::cuda_testing {

inline bool HasCudaDevice() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

#define FLATQUANT_NEEDS_CUDA() \
  if (!::flatquant::cuda_testing::HasCudaDevice()) GTEST_SKIP() << "no CUDA device"

#define FLATQUANT_NEEDS_HOPPER() \
  FLATQUANT_NEEDS_CUDA();        \
  if (::flatquant::CurrentCudaDevice().sm_version != 90) GTEST_SKIP() << "no sm_90 device"

// A number in the environment.
inline uint64_t Setting(const char* name, uint64_t otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : std::strtoull(value, nullptr, 10);
}

// Calls test(rng) with a fresh generator per case; a failure shows the seed. So many cases as
// FLATQUANT_CUDA_TEST_CASES says, or few, from seed FLATQUANT_CUDA_TEST_SEED, or 1, on.
template <typename Test>
void ForEachCase(uint64_t few, const Test& test) {
  const uint64_t first = Setting("FLATQUANT_CUDA_TEST_SEED", 1);
  const uint64_t cases = Setting("FLATQUANT_CUDA_TEST_CASES", few);
  for (uint64_t seed = first; seed < first + cases; ++seed) {
    SCOPED_TRACE("seed " + std::to_string(seed));
    Rng rng(seed);
    test(rng);
    if (::testing::Test::HasFailure()) return;
  }
}

// A size in [1, limit], small and odd ones often.
inline int64_t RandomSize(Rng& rng, int64_t limit) {
  const uint64_t kind = rng.Below(3);
  const uint64_t top = kind == 0 ? 9 : kind == 1 ? 150 : static_cast<uint64_t>(limit);
  return 1 + static_cast<int64_t>(rng.Below(std::min(top, static_cast<uint64_t>(limit))));
}

inline std::vector<float> RandomFloats(Rng& rng, int64_t n, double deviation = 1.0) {
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(deviation * rng.Normal());
  return values;
}

// Host conversions; epsilon is half a unit in the last place, relative.
template <typename T>
struct Host;

template <>
struct Host<__half> {
  static constexpr double kEpsilon = 0x1p-11;
  static __half From(float x) { return __float2half(x); }
  static double To(__half x) { return __half2float(x); }
};

template <>
struct Host<__nv_bfloat16> {
  static constexpr double kEpsilon = 0x1p-8;
  static __nv_bfloat16 From(float x) { return __float2bfloat16(x); }
  static double To(__nv_bfloat16 x) { return __bfloat162float(x); }
};

template <typename T>
std::vector<T> RandomElements(Rng& rng, int64_t n, double deviation = 1.0) {
  std::vector<T> values(static_cast<size_t>(n));
  for (T& value : values) value = Host<T>::From(static_cast<float>(deviation * rng.Normal()));
  return values;
}

// The worst of many comparisons, each with its own tolerance; NaN is worst of all.
class Worst {
 public:
  void Compare(double actual, double expected, double tolerance, int64_t i, int64_t j) {
    const double ratio = std::abs(actual - expected) / (tolerance + 1e-300);
    if (ratio <= ratio_) return;
    if (ratio_ != ratio_) return;
    ratio_ = ratio;
    text_ = "at [" + std::to_string(i) + ", " + std::to_string(j) + "]: " + std::to_string(actual) +
            " instead of " + std::to_string(expected) + ", tolerance " + std::to_string(tolerance);
  }
  void Check() const { EXPECT_LE(ratio_, 1.0) << text_; }

 private:
  double ratio_ = 0;
  std::string text_;
};

}  // namespace flatquant::cuda_testing
