#include "flatquant/eval/statistics.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace flatquant {
namespace {

const std::vector<float> kValues = {1, 2, 4, 9};  // mean 4, squared deviations 9 4 0 25

TEST(Statistics, MeanAndItsError) {
  const Estimate estimate = MeanOf(kValues);
  EXPECT_DOUBLE_EQ(estimate.mean, 4);
  EXPECT_DOUBLE_EQ(estimate.error, std::sqrt(38.0 / 3 / 4));
  EXPECT_DOUBLE_EQ(MeanOf(std::vector<float>{7}).mean, 7);
  EXPECT_TRUE(std::isnan(MeanOf(std::vector<float>{7}).error));
  EXPECT_EQ(MeanOf(std::vector<float>{3, 3}).error, 0);
}

TEST(Statistics, DifferencesArePaired) {
  const std::vector<float> more = {2, 3, 5, 10};  // one more each: nothing is uncertain
  EXPECT_DOUBLE_EQ(MeanDifference(more, kValues).mean, 1);
  EXPECT_DOUBLE_EQ(MeanDifference(more, kValues).error, 0);
  const std::vector<float> other = {1, 4, 4, 11};  // differences 0 2 0 2
  EXPECT_DOUBLE_EQ(MeanDifference(other, kValues).error, std::sqrt(4.0 / 3 / 4));
  // var(a - b) = var(a) + var(b) - 2 cov(a, b)
  EXPECT_NEAR(std::pow(MeanDifference(other, kValues).error, 2),
              CovarianceOfMeans(other, other) + CovarianceOfMeans(kValues, kValues) -
                  2 * CovarianceOfMeans(other, kValues),
              1e-12);
}

TEST(Statistics, PercentilesInterpolate) {
  EXPECT_DOUBLE_EQ(Percentile(kValues, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(kValues, 1), 9);
  EXPECT_DOUBLE_EQ(Percentile(kValues, 0.5), 3);
  EXPECT_DOUBLE_EQ(Percentile(kValues, 0.9), 0.3 * 4 + 0.7 * 9);
  EXPECT_DOUBLE_EQ(Percentile(std::vector<float>{5}, 0.3), 5);
}

}  // namespace
}  // namespace flatquant
