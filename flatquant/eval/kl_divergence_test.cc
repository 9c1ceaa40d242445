#include "flatquant/eval/kl_divergence.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/eval/perplexity.h"
#include "flatquant/eval/small_engine_for_test.h"

namespace flatquant {
namespace {

using ::testing::HasSubstr;
using testing::RandomText;
using testing::SmallEngine;

TEST(CompareLogits, HandMadeDistributions) {
  // p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): sum p log(p/q) = 1/2 ln 2 - 1/4 ln 2.
  const std::vector<float> base = {std::log(0.5f), std::log(0.25f), std::log(0.25f)};
  const std::vector<float> logits = {std::log(0.25f) + 9, std::log(0.25f) + 9, std::log(0.5f) + 9};
  const TokenDivergence token = CompareLogits(base, logits, 2);
  EXPECT_NEAR(token.kld, 0.25 * std::log(2.0), 1e-6);
  EXPECT_NEAR(token.nll, std::log(2.0), 1e-6);
  EXPECT_NEAR(token.base_nll, std::log(4.0), 1e-6);
  EXPECT_FALSE(token.same_top);
  const TokenDivergence same = CompareLogits(base, base, 0);
  EXPECT_EQ(same.kld, 0);
  EXPECT_TRUE(same.same_top);
}

TEST(CompareLogits, AgreesWithDoubleOverAWideVocabulary) {
  Rng rng(3);
  std::vector<float> base(3001), logits(3001);
  for (size_t i = 0; i < base.size(); ++i) {
    base[i] = static_cast<float>(rng.Below(1000)) / 100 + 5;
    logits[i] = base[i] + static_cast<float>(rng.Below(1000)) / 2000 - 12;
  }
  double base_sum = 0, sum = 0, kld = 0;
  for (float x : base) base_sum += std::exp(static_cast<double>(x));
  for (float x : logits) sum += std::exp(static_cast<double>(x));
  for (size_t i = 0; i < base.size(); ++i) {
    const double log_p = base[i] - std::log(base_sum);
    kld += std::exp(log_p) * (log_p - (logits[i] - std::log(sum)));
  }
  EXPECT_GT(kld, 0.001);
  // Logits of about 10 have a float error of 5e-7 each, half of them either way.
  EXPECT_NEAR(CompareLogits(base, logits, 7).kld, kld, 1e-6);
}

TEST(KlStatistics, OfHandMadeTokens) {
  const float ln2 = std::log(2.0f);
  // p(Q) 1/2, 1/4, 1/2 where p(base) is 1/2, 1/2, 1/4.
  const std::vector<TokenDivergence> tokens = {
      {0.1f, ln2, ln2, true}, {0.2f, 2 * ln2, ln2, false}, {0.6f, ln2, 2 * ln2, true}};
  const KlStatistics s = Summarize("text", tokens);
  EXPECT_EQ(s.tokens, 3);
  EXPECT_NEAR(s.perplexity.mean, std::exp2(4.0 / 3), 1e-6);
  EXPECT_NEAR(s.base_perplexity.mean, s.perplexity.mean, 1e-6);
  EXPECT_NEAR(s.log_ratio.mean, 0, 1e-7);
  EXPECT_NEAR(s.log_ratio.error, ln2 * std::sqrt(2.0 / 2 / 3), 1e-6);  // 0, ln 2, -ln 2
  EXPECT_NEAR(s.ratio.mean, 1, 1e-6);
  // Deviations of both are (-1, 2, -1) and (-1, -1, 2) thirds of ln 2.
  EXPECT_NEAR(s.correlation, -0.5, 1e-6);
  // Equal perplexities: d(PPL) = PPL d(ln ratio).
  EXPECT_NEAR(s.difference.error, s.perplexity.mean * s.log_ratio.error, 1e-5);
  EXPECT_NEAR(s.kld.mean.mean, 0.3, 1e-6);
  EXPECT_NEAR(s.kld.median, 0.2, 1e-6);
  EXPECT_NEAR(s.kld.maximum, 0.6, 1e-6);
  EXPECT_NEAR(s.kld.percentiles.back(), 0.2 + 0.998 * 0.4, 1e-6);  // 99.9%
  EXPECT_NEAR(s.probability.minimum, -0.25, 1e-6);
  EXPECT_NEAR(s.probability.mean.mean, 0, 1e-7);
  EXPECT_NEAR(s.rms_probability.mean, std::sqrt(2.0 / 3) / 4, 1e-6);
  EXPECT_NEAR(s.same_top.mean, 2.0 / 3, 1e-7);
  const std::string report = FormatKl(s);
  for (const char* line :
       {"====== Perplexity statistics ======\nMean PPL(Q)                   :   2.519842 ±",
        "\nMean PPL(base)                :", "\nCor(ln(PPL(Q)), ln(PPL(base))): -50.00%\n",
        "\nMean ln(PPL(Q)/PPL(base))     :", "\nMean PPL(Q)/PPL(base)         :",
        "\nMean PPL(Q)-PPL(base)         :", "\n====== KL divergence statistics ======\n",
        "\nMean    KLD:   0.300000 ±", "\nMaximum KLD:   0.600000\n99.9%   KLD:   0.599200\n",
        "\nMedian  KLD:   0.200000\n10.0%   KLD:", "\nMinimum KLD:   0.100000\n",
        "\n====== Token probability statistics ======\nMean    Δp:", "\n75.0%   Δp:",
        "\n25.0%   Δp:", "\nMinimum Δp: -25.000%\n", "\nRMS Δp    : 20.412 ±",
        "\nSame top p: 66.667 ±"}) {
    EXPECT_THAT(report, HasSubstr(line));
  }
  EXPECT_NEAR(KlJson(s)["kld"]["percentiles"]["99.9"].get<double>(), 0.5992, 1e-6);
}

TEST(Diverge, AModelFromItselfByNothing) {
  for (const char* scheme : {"w16a16kv16", "w4a4kv4"}) {
    const auto engine = SmallEngine(1, scheme);
    const auto twin = SmallEngine(1, scheme);
    const TextWindows text = RandomText(40, 2, 5);
    EngineLogitRows base(*twin, text), rows(*engine, text);
    const auto tokens = Diverge(text, base, rows, engine->pool());
    ASSERT_EQ(tokens.size(), 78u);
    for (const TokenDivergence& token : tokens) {
      EXPECT_EQ(token.kld, 0);
      EXPECT_TRUE(token.same_top);
    }
  }
}

TEST(Diverge, SeesTheSameLikelihoodsAsPerplexity) {
  const auto engine = SmallEngine(1);
  const auto other = SmallEngine(2);
  TextWindows text = RandomText(40, 2, 5);
  for (bool strided : {false, true}) {
    if (strided) text.windows = StridedWindows(80, 40, 13);
    EngineLogitRows base(*other, text), rows(*engine, text);
    const auto tokens = Diverge(text, base, rows, engine->pool());
    const EvalResult ppl = Perplexity(*engine, text);
    const EvalResult base_ppl = Perplexity(*other, text);
    ASSERT_EQ(tokens.size(), ppl.samples.size());
    for (size_t i = 0; i < tokens.size(); ++i) {
      EXPECT_NEAR(tokens[i].nll, ppl.samples[i], 1e-5 * ppl.samples[i]);
      EXPECT_NEAR(tokens[i].base_nll, base_ppl.samples[i], 1e-5 * base_ppl.samples[i]);
      EXPECT_GT(tokens[i].kld, 0);
    }
  }
}

}  // namespace
}  // namespace flatquant
