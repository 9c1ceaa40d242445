#include "flatquant/eval/perplexity.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <vector>

namespace flatquant {
namespace {

TEST(PerplexityMeter, ExpOfTheMeanOverWindows) {
  PerplexityMeter meter;
  EXPECT_TRUE(meter.Add(std::vector<float>{1.0f, 2.0f, 3.0f}));
  EXPECT_DOUBLE_EQ(meter.Value(), std::exp(2.0));
  EXPECT_TRUE(meter.Add(std::vector<float>{0.0f, 0.0f, 3.0f}));
  EXPECT_DOUBLE_EQ(meter.Value(), std::exp(1.5));
  EXPECT_EQ(meter.windows(), 2);
}

TEST(PerplexityMeter, AUniformModelHasItsVocabularyAsPerplexity) {
  PerplexityMeter meter;
  for (int i = 0; i < 10; ++i) meter.Add(std::vector<float>(2047, std::log(4096.0f)));
  EXPECT_NEAR(meter.Value(), 4096.0, 4096.0 * 9 * std::numeric_limits<float>::epsilon());
}

TEST(PerplexityMeter, RefusesWhatIsNotFinite) {
  PerplexityMeter meter;
  meter.Add(std::vector<float>{1.0f});
  for (float bad : {std::nanf(""), INFINITY, -INFINITY}) {
    EXPECT_FALSE(meter.Add(std::vector<float>{1.0f, bad}));
  }
  EXPECT_EQ(meter.windows(), 1);
  EXPECT_DOUBLE_EQ(meter.Value(), std::exp(1.0));
}

TEST(ResultsJson, OneObjectWithAllDigits) {
  const EvalResult result{.name = "wikitext2",
                          .metric = "perplexity",
                          .value = 27.003000000000004,
                          .tokens = 311296,
                          .windows = 152,
                          .seqlen = 2048,
                          .seconds = 1.5};
  const std::string text = ResultsJson(std::vector<EvalResult>{result, result});
  EXPECT_EQ(text.find('\n'), std::string::npos);
  const auto json = nlohmann::json::parse(text);
  ASSERT_EQ(json.at("results").size(), 2u);
  const auto& first = json["results"][0];
  EXPECT_EQ(first.at("name"), "wikitext2");
  EXPECT_EQ(first.at("metric"), "perplexity");
  EXPECT_EQ(first.at("value").get<double>(), 27.003000000000004);
  EXPECT_EQ(first.at("tokens"), 311296);
  EXPECT_EQ(first.at("windows"), 152);
  EXPECT_EQ(nlohmann::json::parse(ResultsJson({})).at("results").size(), 0u);
}

}  // namespace
}  // namespace flatquant
