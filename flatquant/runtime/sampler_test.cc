#include "flatquant/runtime/sampler.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

TEST(SamplerTest, GreedyTakesTheFirstLargest) {
  Sampler sampler({});
  EXPECT_EQ(sampler.Next(std::vector<float>{1, 5, 5, -2}), 1);
}

// Frequencies of 40,000 draws lie within 5 deviations of their probabilities.
void ExpectFrequencies(const SamplerOptions& options, const std::vector<float>& logits,
                       const std::map<int32_t, double>& expected) {
  Sampler sampler(options);
  constexpr int kDraws = 40000;
  std::map<int32_t, int> counts;
  for (int i = 0; i < kDraws; ++i) ++counts[sampler.Next(logits)];
  for (const auto& [id, count] : counts) EXPECT_TRUE(expected.contains(id)) << id;
  for (const auto& [id, p] : expected) {
    EXPECT_NEAR(counts[id], kDraws * p, 5 * std::sqrt(kDraws * p * (1 - p))) << id;
  }
}

const std::vector<float> kLogits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};

TEST(SamplerTest, DrawsWithTheSoftmaxProbabilities) {
  ExpectFrequencies({.temperature = 1}, kLogits, {{0, 0.1}, {1, 0.4}, {2, 0.2}, {3, 0.3}});
}

TEST(SamplerTest, TemperatureSharpens) {
  // Squares of the probabilities: 1, 16, 4, 9 of 30.
  ExpectFrequencies({.temperature = 0.5f}, kLogits,
                    {{0, 1 / 30.}, {1, 16 / 30.}, {2, 4 / 30.}, {3, 9 / 30.}});
}

TEST(SamplerTest, TopKKeepsTheMostLikely) {
  ExpectFrequencies({.temperature = 1, .top_k = 2}, kLogits, {{1, 4 / 7.}, {3, 3 / 7.}});
}

TEST(SamplerTest, TopPKeepsTheSmallestSufficientSet) {
  ExpectFrequencies({.temperature = 1, .top_p = 0.69f}, kLogits, {{1, 4 / 7.}, {3, 3 / 7.}});
  ExpectFrequencies({.temperature = 1, .top_p = 0.71f}, kLogits,
                    {{1, 4 / 9.}, {3, 3 / 9.}, {2, 2 / 9.}});
}

// More tokens than the first sorted prefix holds.
TEST(SamplerTest, TopPOverAFlatVocabulary) {
  const std::vector<float> logits(1000, 0.0f);
  Sampler sampler({.temperature = 1, .top_p = 0.5f});
  std::set<int32_t> seen;
  for (int i = 0; i < 20000; ++i) seen.insert(sampler.Next(logits));
  EXPECT_EQ(seen.size(), 500u);
  EXPECT_EQ(*seen.rbegin(), 499);  // equal logits count in order of their ids
}

TEST(SamplerTest, SameSeedSameTokens) {
  Sampler a({.temperature = 1, .seed = 7}), b({.temperature = 1, .seed = 7});
  Sampler other({.temperature = 1, .seed = 8});
  std::vector<int32_t> from_a, from_b, from_other;
  for (int i = 0; i < 50; ++i) {
    from_a.push_back(a.Next(kLogits));
    from_b.push_back(b.Next(kLogits));
    from_other.push_back(other.Next(kLogits));
  }
  EXPECT_EQ(from_a, from_b);
  EXPECT_NE(from_a, from_other);
}

TEST(SamplerTest, MaskedLogitsAreNeverDrawn) {
  ExpectFrequencies({.temperature = 1}, {-INFINITY, 0, -INFINITY, 0}, {{1, 0.5}, {3, 0.5}});
}

std::string ErrorOf(const SamplerOptions& options, const std::vector<float>& logits) {
  try {
    Sampler(options).Next(logits);
  } catch (const Error& error) {
    return error.name();
  }
  return "none";
}

TEST(SamplerTest, RefusesBadOptionsAndLogits) {
  EXPECT_EQ(ErrorOf({.temperature = -1}, kLogits), "sampler.bad_option");
  EXPECT_EQ(ErrorOf({.temperature = NAN}, kLogits), "sampler.bad_option");
  EXPECT_EQ(ErrorOf({.top_k = -1}, kLogits), "sampler.bad_option");
  EXPECT_EQ(ErrorOf({.top_p = 0}, kLogits), "sampler.bad_option");
  EXPECT_EQ(ErrorOf({.top_p = 1.5f}, kLogits), "sampler.bad_option");
  EXPECT_EQ(ErrorOf({}, {1, NAN}), "sampler.bad_logits");
  EXPECT_EQ(ErrorOf({}, {-INFINITY, -INFINITY}), "sampler.bad_logits");
  EXPECT_EQ(ErrorOf({.temperature = 1}, {0, INFINITY}), "sampler.bad_logits");
}

}  // namespace
}  // namespace flatquant
