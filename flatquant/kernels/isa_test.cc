#include "flatquant/kernels/isa.h"

#include <gtest/gtest.h>

#include <string>

#include "flatquant/base/error.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

CpuFeatures Avx2Only() {
  CpuFeatures features;
  features.avx2 = true;
  return features;
}

TEST(IsaTest, NoVariableMeansNoLimit) {
  EXPECT_EQ(ParseIsaLimit(nullptr, Avx2Only()), Isa::kAmxInt8);
  EXPECT_EQ(ParseIsaLimit("", Avx2Only()), Isa::kAmxInt8);
}

TEST(IsaTest, AnInstructionSetThatTheCpuHasIsHonoured) {
  EXPECT_EQ(ParseIsaLimit("reference", CpuFeatures{}), Isa::kReference);
  EXPECT_EQ(ParseIsaLimit("avx2", Avx2Only()), Isa::kAvx2);
}

TEST(IsaTest, AnInstructionSetThatTheCpuLacksIsRefusedByName) {
  try {
    ParseIsaLimit("avx512vnni", Avx2Only());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "kernels.isa_unavailable");
    EXPECT_NE(std::string(error.what()).find("reference, avx2"), std::string::npos) << error.what();
  }
}

TEST(IsaTest, AnUnknownNameIsRefusedWithTheKnownOnes) {
  try {
    ParseIsaLimit("sse9", Avx2Only());
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "kernels.unknown_isa");
    EXPECT_NE(std::string(error.what()).find("avx512vnni"), std::string::npos) << error.what();
  }
}

TEST(RegistryTest, KernelsComeBestFirstAndEndInTheReference) {
  const auto& kernels = KernelsOf<GemmIntKernel>();
  ASSERT_FALSE(kernels.empty());
  EXPECT_EQ(kernels.back().name, "Reference");
  EXPECT_EQ(kernels.back().isa, Isa::kReference);
  for (size_t i = 1; i < kernels.size(); ++i) EXPECT_GE(kernels[i - 1].isa, kernels[i].isa);
}

TEST(RegistryTest, TheBestKernelRunsOnThisCpuWithinTheLimit) {
  const auto& best = BestKernel<GemmIntKernel>();
  EXPECT_TRUE(CpuHas(GetCpuFeatures(), best.isa));
  EXPECT_LE(best.isa, IsaLimit());
}

}  // namespace
}  // namespace flatquant
