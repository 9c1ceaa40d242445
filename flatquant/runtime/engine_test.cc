// The engine on small random models: against the oracle, and against itself.
#include "flatquant/runtime/engine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/rng.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

namespace flatquant {
namespace {

class SchemeTest : public ::testing::TestWithParam<const char*> {
 protected:
  bool has_grids() const {
    const Scheme scheme = Scheme::Parse(GetParam());
    return scheme.act_bits < 16 || scheme.k_bits < 16 || scheme.v_bits < 16;
  }
};

TEST_P(SchemeTest, AgreesWithTheOracle) {
  for (const ModelConfig& config : {SmallConfig(), FullConfig()}) {
    SCOPED_TRACE(config.qk_norm ? "full configuration" : "plain configuration");
    std::vector<double> worst;
    for (int text = 0; text < kTexts; ++text) {
      const uint64_t seed = static_cast<uint64_t>(text + 1);
      const PackedModel model = RandomPackedModel(config, Scheme::Parse(GetParam()), seed);
      worst.push_back(WorstAgainstOracle(model, seed));
    }
    const Scheme scheme = Scheme::Parse(GetParam());
    ExpectAgreement(worst, has_grids(), AllTextsTakeSteps(scheme), StepAgreement(scheme));
  }
}

TEST_P(SchemeTest, TokenByTokenAgreesWithAllAtOnce) {
  std::vector<double> worst;
  for (int text = 0; text < kTexts; ++text) {
    const uint64_t seed = static_cast<uint64_t>(text + 1);
    const auto engine = Engine::FromPacked(
        RandomPackedModel(FullConfig(), Scheme::Parse(GetParam()), seed), {.threads = 2});
    const auto tokens = RandomTokens(engine->config(), 2 * kTextTokens, seed);
    worst.push_back(WorstInDeviations(AllLogits(*engine, tokens, 1),
                                      AllLogits(*engine, tokens, tokens.size())));
  }
  ExpectAgreement(worst, has_grids());
}

TEST_P(SchemeTest, ThreadCountDoesNotChangeABit) {
  const PackedModel model = RandomPackedModel(FullConfig(), Scheme::Parse(GetParam()), 3);
  const auto tokens = RandomTokens(model.config, 150, 3);
  const auto one = AllLogits(*Engine::FromPacked(model, {.threads = 1}), tokens, tokens.size());
  for (int threads : {2, 5}) {
    const auto many =
        AllLogits(*Engine::FromPacked(model, {.threads = threads}), tokens, tokens.size());
    EXPECT_EQ(one, many) << threads;
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, SchemeTest,
                         ::testing::Values("w16a16", "w4a16", "w8a16", "w16a16kv4", "w4a4kv4",
                                           "w8a8", "w3a5k8v2", "w16a8", "w4a8kv4"),
                         [](const auto& info) { return std::string(info.param); });

TEST(EngineTest, ClipsPerLinear) {
  const Scheme scheme = Scheme::Parse("w4a4kv4");
  std::vector<double> worst;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    PackedModel model = RandomPackedModel(SmallConfig(), scheme, seed);
    for (PackedBlock& block : model.blocks) {
      block.site(Site::kAttnIn).clips = {{0.9f, 0.8f}, {1.0f, 0.5f}, {0.6f, 0.7f}};
      block.site(Site::kMlpIn).clips = {{0.9f, 0.8f}, {0.5f, 1.0f}};
    }
    worst.push_back(WorstAgainstOracle(model, seed));
  }
  ExpectAgreement(worst, true, AllTextsTakeSteps(scheme), StepAgreement(scheme));
}

// bfloat16 keeps 8 bits; errors of 2^-9 per operand average out over sums and add
// up over the steps of two layers.
TEST(EngineTest, BF16StaysNearF32) {
  for (const char* scheme : {"w16a16", "w4a16"}) {
    const PackedModel model = RandomPackedModel(SmallConfig(), Scheme::Parse(scheme), 1);
    const auto tokens = RandomTokens(model.config, 40, 1);
    const auto exact = AllLogits(*Engine::FromPacked(model, {.threads = 2}), tokens, tokens.size());
    const auto engine = Engine::FromPacked(model, {.threads = 2, .precision = Precision::kBF16});
    const double worst = WorstInDeviations(AllLogits(*engine, tokens, tokens.size()), exact);
    EXPECT_LT(worst, 0.1) << scheme;
    EXPECT_GT(worst, 1e-5) << "bfloat16 was not used";
    const double decoded = WorstInDeviations(AllLogits(*engine, tokens, 1), exact);
    EXPECT_LT(decoded, 0.1) << scheme;
  }
}

// Longer than a chunk, in a vocabulary larger than a slice.
TEST(EngineTest, TokenNllIsTheSoftmaxOfForward) {
  ModelConfig config = SmallConfig();
  config.vocab = 5000;
  const auto engine =
      Engine::FromPacked(RandomPackedModel(config, Scheme::Parse("w4a4kv4"), 2), {.threads = 2});
  const auto tokens = RandomTokens(config, 700, 2);
  const auto logits = AllLogits(*engine, tokens, tokens.size());
  Sequence sequence(*engine, 700);
  std::vector<float> nll(tokens.size() - 1);
  engine->TokenNll(sequence, tokens, nll);
  EXPECT_EQ(sequence.length(), 700);
  for (size_t t = 0; t < nll.size(); ++t) {
    const float* row = logits.data() + t * 5000;
    const double top = *std::max_element(row, row + 5000);
    const double sum = std::accumulate(
        row, row + 5000, 0.0, [&](double s, float logit) { return s + std::exp(logit - top); });
    const double expected = top + std::log(sum) - row[tokens[t + 1]];
    // The exponential's 2^-22, sums of 16 lanes, float results near 10.
    ASSERT_NEAR(nll[t], expected, 1e-5) << t;
  }
}

TEST(EngineTest, LastLogitsAreTheLastRowOfAll) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w16a16"), 2), {.threads = 2});
  const auto tokens = RandomTokens(engine->config(), 600, 2);
  const auto all = AllLogits(*engine, tokens, tokens.size());
  Sequence sequence(*engine, 600);
  const auto last = engine->Forward(sequence, tokens, Engine::Logits::kLast);
  ASSERT_EQ(last.size(), 50u);
  const std::vector<float> row(all.end() - 50, all.end());
  EXPECT_LT(WorstInDeviations({last.begin(), last.end()}, row), 1e-5);
}

TEST(EngineTest, TruncateGoesBack) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4kv4"), 2), {.threads = 1});
  const auto tokens = RandomTokens(engine->config(), 8, 2);
  Sequence sequence(*engine, 8);
  const auto forward = [&](std::span<const int32_t> part) {
    const auto logits = engine->Forward(sequence, part, Engine::Logits::kLast);
    return std::vector<float>(logits.begin(), logits.end());
  };
  const auto first = forward(tokens);
  sequence.Truncate(5);
  forward(std::vector<int32_t>{1, 2});
  sequence.Truncate(5);
  EXPECT_EQ(sequence.length(), 5);
  forward(std::span(tokens).subspan(5, 3));
  sequence.Clear();
  EXPECT_EQ(forward(tokens), first);
}

TEST(EngineTest, RefusesBadTokensAndFullSequencesUnchanged) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4kv4"), 1), {.threads = 1});
  Sequence sequence(*engine, 4);
  const auto error_of = [&](const std::vector<int32_t>& tokens) -> std::string {
    try {
      engine->Forward(sequence, tokens, Engine::Logits::kLast);
    } catch (const Error& error) {
      return error.name();
    }
    return "none";
  };
  EXPECT_EQ(error_of({1, 50}), "runtime.bad_token");
  EXPECT_EQ(error_of({-1}), "runtime.bad_token");
  EXPECT_EQ(error_of({1, 2, 3, 4, 5}), "runtime.context_full");
  EXPECT_EQ(sequence.length(), 0);
  EXPECT_EQ(error_of({1, 2, 3, 4}), "none");
  EXPECT_EQ(error_of({1}), "runtime.context_full");
  EXPECT_EQ(sequence.length(), 4);
  EXPECT_THROW(Sequence(*engine, 0), Error);
}

TEST(EngineTest, SizesFollowTheBits) {
  const auto packed = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4kv4"), 1), {.threads = 1});
  const auto plain = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w16a16"), 1), {.threads = 1});
  // 2 layers, K and V, 2 heads of 10 elements, 100 positions.
  EXPECT_EQ(Sequence(*plain, 100).cache_bytes(), 2u * 2 * 2 * 100 * 10 * 4);
  EXPECT_EQ(Sequence(*packed, 100).cache_bytes(), 2u * 2 * 2 * 100 * (5 + 4 + 1));
  // Wide enough for kernels' padding of rows and columns not to matter.
  ModelConfig wide = SmallConfig();
  wide.hidden = 240;
  wide.ffn = 704;
  const auto bytes = [&](const char* scheme) {
    return Engine::FromPacked(RandomPackedModel(wide, Scheme::Parse(scheme), 1), {.threads = 1})
        ->weight_bytes();
  };
  EXPECT_LT(bytes("w4a4kv4"), bytes("w16a16") / 2);
}

}  // namespace
}  // namespace flatquant
