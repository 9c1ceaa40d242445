#include <gtest/gtest.h>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/swiglu/swiglu.h"
#include "flatquant/kernels/vector_exp.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

TEST(SwigluTest, AgreesWithTheFormula) {
  ForEachKernel<SwigluKernel>([](const SwigluKernel& kernel) {
    ForEachSeed(60, [&](Rng& rng) {
      const int64_t rows = RandomSize(rng, 50), cols = RandomSize(rng, 300);
      const double deviation = rng.Below(2) == 0 ? 1.0 : 60.0;
      AlignedBuffer<float> gate = RandomFloats(rng, rows * cols, deviation);
      const AlignedBuffer<float> up = RandomFloats(rng, rows * cols);
      AlignedBuffer<float> y(gate.size());
      kernel.run({gate.data(), up.data(), rows, cols, y.data()}, 0, rows);
      Worst worst;
      for (size_t i = 0; i < y.size(); ++i) {
        const double g = gate[i];
        const double expected = g / (1 + std::exp(-g)) * up[i];
        // The exponential's 2^-22 and three operations. Below -87 silu is less than
        // 87 e^-87, which floats near 0 need not resolve.
        worst.Compare(y[i], expected, (0x1p-22 + 4 * kEpsilon) * std::abs(expected) + 1e-34,
                      static_cast<int64_t>(i), 0);
      }
      worst.Check();
      kernel.run({gate.data(), up.data(), rows, cols, gate.data()}, 0, rows);
      for (size_t i = 0; i < y.size(); ++i) ASSERT_EQ(gate[i], y[i]) << "in place";
    });
  });
}

TEST(SwigluTest, ExtremesStayFinite) {
  ForEachKernel<SwigluKernel>([](const SwigluKernel& kernel) {
    const float gate[4] = {-1e30f, 1e30f, -90.0f, 0.0f};
    const float up[4] = {1, 1, 1, 1};
    float y[4];
    kernel.run({gate, up, 1, 4, y}, 0, 1);
    EXPECT_EQ(std::abs(y[0]), 0.0f);
    EXPECT_EQ(y[1], 1e30f);
    EXPECT_NEAR(y[2], 0.0f, 1e-30);
    EXPECT_EQ(y[3], 0.0f);
  });
}

TEST(SwigluTest, ThreadsDoNotChangeABit) {
  Rng rng(2);
  const int64_t rows = 300, cols = 131;
  const AlignedBuffer<float> gate = RandomFloats(rng, rows * cols);
  const AlignedBuffer<float> up = RandomFloats(rng, rows * cols);
  AlignedBuffer<float> one(up.size()), three(up.size());
  ThreadPool single(1), several(3);
  Swiglu({gate.data(), up.data(), rows, cols, one.data()}, single);
  Swiglu({gate.data(), up.data(), rows, cols, three.data()}, several);
  for (size_t i = 0; i < up.size(); ++i) ASSERT_EQ(one[i], three[i]);
}

TEST(VectorExpTest, IsAccurateEverywhere) {
  double worst = 0;
  for (double x = -87.0; x < 88.7; x += 1.0 / 1024) {
    const float input = static_cast<float>(x);
    const double expected = std::exp(static_cast<double>(input));
    worst = std::max(worst, std::abs(VectorExp(input) - expected) / expected);
  }
  EXPECT_LT(worst, 0x1p-22);
  for (double x = -87.0; x < 88.0; x += 1.0 / 512) {
    float lanes[kLanes];
    StoreLanes(lanes, ExpLanesWithin(SetLanes(static_cast<float>(x))));
    const double expected = std::exp(static_cast<double>(static_cast<float>(x)));
    worst = std::max(worst, std::abs(lanes[kLanes - 1] - expected) / expected);
  }
  EXPECT_LT(worst, 0x1p-22) << "of a register";
  EXPECT_EQ(VectorExp(0.0f), 1.0f);
  EXPECT_EQ(VectorExp(-87.5f), 0.0f);
  EXPECT_EQ(VectorExp(-INFINITY), 0.0f);
  EXPECT_EQ(VectorExp(100.0f), INFINITY);
}

TEST(VectorExpTest, SoftmaxLeavesNoSubnormals) {
  const auto exp_of = [](double x) {
    float lanes[kLanes];
    StoreLanes(lanes, SoftmaxExpLanes(SetLanes(static_cast<float>(x))));
    return lanes[kLanes - 1];
  };
  for (double x = -60.0; x <= 0.0; x += 1.0 / 512) {
    const double expected = std::exp(x);
    ASSERT_LT(std::abs(exp_of(x) - expected) / expected, 0x1p-22) << x;
  }
  EXPECT_EQ(exp_of(0.0), 1.0f);
  for (const double x : {-60.1, -87.0, -100.0, -1e30, -INFINITY + 0.0}) EXPECT_EQ(exp_of(x), 0.0f);
}

}  // namespace
}  // namespace flatquant
