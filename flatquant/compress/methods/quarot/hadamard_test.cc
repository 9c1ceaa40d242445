#include "flatquant/compress/methods/quarot/hadamard.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "flatquant/base/rng.h"

namespace flatquant::compress {
namespace {

TEST(Hadamard, KnowsTheOrdersOfWidthsOfLanguageModels) {
  for (const int64_t n : {1,  2,  4,  8,  64,  128, 12,  20,  24,  28,  36,
                          40, 44, 52, 60, 104, 108, 112, 140, 156, 172, 344}) {
    ASSERT_TRUE(HasHadamard(n)) << n;
    const at::Tensor h = HadamardMatrix(n);
    EXPECT_TRUE(at::equal(h.abs(), at::ones_like(h))) << n;
    EXPECT_TRUE(at::equal(at::matmul(h, h.t()), at::eye(n, at::kDouble) * static_cast<double>(n)))
        << n;
  }
  for (const int64_t n : {3, 6, 14, 22, 39, 43, 86, 92}) EXPECT_FALSE(HasHadamard(n)) << n;
}

TEST(HadamardFactors, TakesTheNearestFactorsThatHaveHadamardMatrices) {
  EXPECT_EQ(HadamardFactors(4096), (KronShape{64, 64}));
  EXPECT_EQ(HadamardFactors(11008), (KronShape{64, 172}));
  EXPECT_EQ(HadamardFactors(14336), (KronShape{112, 128}));
  EXPECT_EQ(HadamardFactors(1376), (KronShape{8, 172}));
  EXPECT_EQ(HadamardFactors(172), (KronShape{1, 172}));  // one matrix is as good
  EXPECT_EQ(HadamardFactors(1), (KronShape{1, 1}));
  EXPECT_EQ(HadamardFactors(13), KronFactors(13));
  EXPECT_EQ(HadamardFactors(4 * 1283), KronFactors(4 * 1283));  // 1 x 5132 is too large
  EXPECT_EQ(HadamardFactors(86 * 43), KronFactors(86 * 43));
}

TEST(RandomRotation, IsOrthogonalForEveryOrder) {
  Rng rng(4);
  for (const int64_t n : {1, 2, 7, 12, 16, 22, 43}) {
    const at::Tensor r = RandomRotation(n, rng);
    EXPECT_TRUE(at::allclose(at::matmul(r, r.t()), at::eye(n, at::kDouble), 0, 1e-12)) << n;
  }
}

TEST(RandomRotation, DrawsAnotherMatrixEachTime) {
  Rng rng(4);
  const at::Tensor first = RandomRotation(16, rng);
  EXPECT_FALSE(at::equal(first, RandomRotation(16, rng)));
}

}  // namespace
}  // namespace flatquant::compress
