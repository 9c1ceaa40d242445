// Batched scores that share prefixes against every text run alone from its start.
#include "flatquant/eval/engine_scorer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/rng.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/packed/small_config_for_test.h"

namespace flatquant {
namespace {

std::vector<int32_t> Tokens(size_t n, Rng& rng) {
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) token = static_cast<int32_t>(rng.Below(50));
  return tokens;
}

// The definition: log softmax of the logits of the whole text, in double.
LikelihoodScore Expected(const Engine& engine, const LikelihoodRequest& request) {
  std::vector<int32_t> tokens = request.context;
  tokens.insert(tokens.end(), request.continuation.begin(), request.continuation.end());
  Sequence sequence(engine, static_cast<int64_t>(tokens.size()));
  const auto logits = engine.Forward(sequence, tokens, Engine::Logits::kAll);
  LikelihoodScore score{0, true};
  for (size_t i = 0; i < request.continuation.size(); ++i) {
    const float* row = logits.data() + (request.context.size() + i - 1) * 50;
    double sum = 0;
    for (int j = 0; j < 50; ++j) sum += std::exp(static_cast<double>(row[j]));
    score.log_likelihood += row[request.continuation[i]] - std::log(sum);
    score.greedy = score.greedy && std::max_element(row, row + 50) - row == request.continuation[i];
  }
  return score;
}

// Makes the request's continuation what greedy decoding gives.
void MakeGreedy(const Engine& engine, LikelihoodRequest& request) {
  std::vector<int32_t> text = request.context;
  for (int32_t& token : request.continuation) {
    Sequence sequence(engine, 200);
    const auto logits = engine.Forward(sequence, text, Engine::Logits::kLast);
    token = static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    text.push_back(token);
  }
}

TEST(EngineScorer, AgreesWithTextsRunAlone) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(testing::SmallConfig(512), Scheme::Parse("w16a16kv16"), 7), {.threads = 2});
  Rng rng(11);
  std::vector<LikelihoodGroup> groups(5);
  // Four endings of one context, of different lengths.
  const std::vector<int32_t> context = Tokens(90, rng);
  for (size_t n : {1, 7, 3, 20}) groups[0].push_back({context, Tokens(n, rng)});
  // One continuation of contexts that part in the middle (as WinoGrande has them).
  const std::vector<int32_t> rest = Tokens(6, rng);
  for (size_t n : {1, 4}) {
    std::vector<int32_t> filled(context.begin(), context.begin() + 30);
    const std::vector<int32_t> option = Tokens(n, rng);
    filled.insert(filled.end(), option.begin(), option.end());
    groups[1].push_back({filled, rest});
  }
  groups[2].push_back({Tokens(130, rng), Tokens(2, rng)});  // alone
  groups[3] = {{{5}, {6}}, {{5}, {7, 8}}};                  // nothing to share
  groups[4].push_back({Tokens(12, rng), Tokens(3, rng)});
  MakeGreedy(*engine, groups[4][0]);

  EngineScorer scorer(*engine);
  for (int repeat = 0; repeat < 2; ++repeat) {  // the second time in kept sequences
    const auto scores = scorer.Score(groups);
    ASSERT_EQ(scores.size(), groups.size());
    for (size_t g = 0; g < groups.size(); ++g) {
      ASSERT_EQ(scores[g].size(), groups[g].size());
      for (size_t i = 0; i < groups[g].size(); ++i) {
        const LikelihoodScore expected = Expected(*engine, groups[g][i]);
        EXPECT_NEAR(scores[g][i].log_likelihood, expected.log_likelihood,
                    1e-5 * std::abs(expected.log_likelihood))
            << "group " << g << " choice " << i;
        EXPECT_EQ(scores[g][i].greedy, expected.greedy);
      }
    }
    EXPECT_TRUE(scores[4][0].greedy);
  }
}

TEST(EngineScorer, AContextMayFillTheModel) {
  ModelConfig config = testing::SmallConfig(512);
  config.max_positions = 16;
  const auto engine =
      Engine::FromPacked(RandomPackedModel(config, Scheme::Parse("w16a16kv16"), 7), {.threads = 1});
  Rng rng(3);
  const std::vector<LikelihoodGroup> groups = {{{Tokens(15, rng), Tokens(2, rng)}}};
  EXPECT_TRUE(std::isfinite(EngineScorer(*engine).Score(groups)[0][0].log_likelihood));
}

}  // namespace
}  // namespace flatquant
