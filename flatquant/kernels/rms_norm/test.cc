#include <gtest/gtest.h>

#include "flatquant/kernels/kernel_testing.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"

namespace flatquant {
namespace {

using kernel_testing::ForEachKernel;
using kernel_testing::ForEachSeed;
using kernel_testing::kEpsilon;
using kernel_testing::RandomFloats;
using kernel_testing::RandomSize;
using kernel_testing::Worst;

TEST(RmsNormTest, AgreesWithTheFormula) {
  ForEachKernel<RmsNormKernel>([](const RmsNormKernel& kernel) {
    ForEachSeed(60, [&](Rng& rng) {
      const int64_t rows = RandomSize(rng, 50), cols = RandomSize(rng, 300);
      AlignedBuffer<float> x = RandomFloats(rng, rows * cols, 3.0);
      const AlignedBuffer<float> weight = RandomFloats(rng, cols);
      AlignedBuffer<float> y(x.size());
      const float eps = 1e-3f;
      kernel.run({x.data(), weight.data(), eps, rows, cols, y.data()}, 0, rows);
      Worst worst;
      for (int64_t r = 0; r < rows; ++r) {
        double squares = 0;
        for (int64_t c = 0; c < cols; ++c)
          squares += std::pow(x[static_cast<size_t>(r * cols + c)], 2);
        const double scale = 1 / std::sqrt(squares / static_cast<double>(cols) + eps);
        for (int64_t c = 0; c < cols; ++c) {
          const size_t i = static_cast<size_t>(r * cols + c);
          const double expected = x[i] * scale * weight[static_cast<size_t>(c)];
          // Half the relative error of the sum of squares, and six single operations.
          worst.Compare(y[i], expected,
                        kEpsilon * (static_cast<double>(cols) / 2 + 6) * std::abs(expected), r, c);
        }
      }
      worst.Check();
      kernel.run({x.data(), weight.data(), eps, rows, cols, x.data()}, 0, rows);
      for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(x[i], y[i]) << "in place";
    });
  });
}

TEST(RmsNormTest, ThreadsDoNotChangeABit) {
  Rng rng(2);
  const int64_t rows = 300, cols = 257;
  const AlignedBuffer<float> x = RandomFloats(rng, rows * cols);
  const AlignedBuffer<float> weight = RandomFloats(rng, cols);
  AlignedBuffer<float> one(x.size()), three(x.size());
  ThreadPool single(1), several(3);
  RmsNorm({x.data(), weight.data(), 1e-5f, rows, cols, one.data()}, single);
  RmsNorm({x.data(), weight.data(), 1e-5f, rows, cols, three.data()}, several);
  for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(one[i], three[i]);
}

TEST(RmsNormTest, ZerosStayZeros) {
  ThreadPool pool(1);
  const float weight[3] = {1, 2, 3};
  float x[3] = {0, 0, 0};
  RmsNorm({x, weight, 1e-6f, 1, 3, x}, pool);
  for (float value : x) EXPECT_EQ(value, 0);
}

}  // namespace
}  // namespace flatquant
