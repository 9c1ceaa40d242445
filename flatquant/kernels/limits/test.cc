#include <gtest/gtest.h>

#include <vector>

#include "flatquant/base/cpu_features.h"
#include "flatquant/kernels/limits/limits.h"
#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {
namespace {

TEST(LimitsTest, WhatTheCpuHasIsMeasuredAndTheRestIsZero) {
  ThreadPool pool(2);
  const CpuLimits limits = MeasureLimits(pool);
  const CpuFeatures& features = GetCpuFeatures();
  EXPECT_GT(limits.read_bytes_per_s, 0);
  EXPECT_GT(limits.fma_flops_per_s, 0);
  EXPECT_GT(limits.avx2_int8_ops_per_s, 0);
  EXPECT_EQ(limits.vnni_ops_per_s > 0, features.avx512vnni);
  EXPECT_EQ(limits.avx512_bf16_ops_per_s > 0, features.avx512bf16);
  EXPECT_EQ(limits.amx_int8_ops_per_s > 0, features.amxint8);
  EXPECT_EQ(limits.amx_bf16_ops_per_s > 0, features.amxbf16);
}

TEST(LimitsTest, ReadLoopReadsEveryByteOnce) {
  std::vector<std::byte> bytes(256 * 4 * 3, std::byte{1});
  constexpr uint64_t kOnes = 0x0101010101010101;
  for (size_t streams : {1, 2, 4}) {
    EXPECT_EQ(ReadLoop(bytes.data(), bytes.size(), streams), kOnes * (bytes.size() / 8));
  }
}

}  // namespace
}  // namespace flatquant
