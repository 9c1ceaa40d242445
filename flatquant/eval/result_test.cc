#include "flatquant/eval/result.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace flatquant {
namespace {

using Kind = EvalResult::Kind;

TEST(EvalResult, PerplexityIsExpOfTheMean) {
  const EvalResult result = EvalResult::FromSamples("text", "perplexity", Kind::kPerplexity,
                                                    {1.0f, 2.0f, 3.0f, 0.0f, 0.0f, 3.0f});
  EXPECT_DOUBLE_EQ(result.value, std::exp(1.5));
  // Squared deviations .25 .25 2.25 2.25 2.25 2.25; d exp(x) = exp(x) dx
  EXPECT_DOUBLE_EQ(result.error, std::exp(1.5) * std::sqrt(9.5 / 5 / 6));
}

TEST(EvalResult, AUniformModelHasItsVocabularyAsPerplexity) {
  const EvalResult result = EvalResult::FromSamples("text", "perplexity", Kind::kPerplexity,
                                                    std::vector<float>(2047, std::log(4096.0f)));
  EXPECT_NEAR(result.value, 4096.0, 4096.0 * 9 * std::numeric_limits<float>::epsilon());
  EXPECT_EQ(result.error, 0);
}

TEST(EvalResult, AccuracyIsTheMean) {
  const EvalResult result = EvalResult::FromSamples("piqa", "acc", Kind::kAccuracy, {1, 0, 1, 1});
  EXPECT_DOUBLE_EQ(result.value, 0.75);
  EXPECT_DOUBLE_EQ(result.error, std::sqrt(0.75 * 0.25 / 3));  // p (1 - p) / (n - 1)
  EXPECT_EQ(FormatValue(result), "75.00 ± 25.00 %");
}

TEST(EvalResult, AnUnknownErrorIsLeftOutAndNull) {
  const EvalResult result =
      EvalResult::FromSamples("text", "perplexity", Kind::kPerplexity, {std::log(8.0f)});
  EXPECT_EQ(FormatValue(result), "8.0000");
  EXPECT_NE(ResultsJson({&result, 1}).dump().find("\"stderr\":null"), std::string::npos);
}

TEST(EvalResult, JsonKeepsAllDigits) {
  EvalResult result;
  result.name = "wikitext2";
  result.metric = "perplexity";
  result.value = 27.003000000000004;
  result.tokens = 311296;
  result.windows = 152;
  const auto json =
      nlohmann::json::parse(ResultsJson(std::vector<EvalResult>{result, result}).dump());
  ASSERT_EQ(json.size(), 2u);
  EXPECT_EQ(json[0].at("name"), "wikitext2");
  EXPECT_EQ(json[0].at("metric"), "perplexity");
  EXPECT_EQ(json[0].at("value").get<double>(), 27.003000000000004);
  EXPECT_EQ(json[1].at("tokens"), 311296);
  EXPECT_EQ(json[1].at("windows"), 152);
  EXPECT_TRUE(ResultsJson({}).is_array());
}

}  // namespace
}  // namespace flatquant
