// Scores of targets against the logits that Forward returns, and copied prefixes
// against text run from its beginning.
#include "flatquant/runtime/token_scores.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <memory>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

namespace flatquant {
namespace {

TEST(SummarizeLogits, TopAndLogSumOfHandMadeRows) {
  const std::vector<float> even(40, 1.5f);
  EXPECT_EQ(SummarizeLogits(even).top, 0);  // of equals the lowest id
  EXPECT_NEAR(SummarizeLogits(even).log_sum, 1.5 + std::log(40.0), 1e-6);
  std::vector<float> row(35, -2.0f);
  row[33] = 3.0f;
  row[34] = 3.0f;
  EXPECT_EQ(SummarizeLogits(row).top, 33);
  EXPECT_NEAR(SummarizeLogits(row).log_sum, std::log(33 * std::exp(-2.0) + 2 * std::exp(3.0)),
              1e-6);
  row[20] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_TRUE(std::isnan(SummarizeLogits(row).log_sum));
}

// -log softmax and the arg max of row `row` of [n, vocab] logits, in double.
void ExpectScore(const std::vector<float>& logits, size_t row, size_t vocab, int32_t target,
                 const TokenScore& score) {
  const float* begin = logits.data() + row * vocab;
  const float top = *std::max_element(begin, begin + vocab);
  double sum = 0;
  for (size_t i = 0; i < vocab; ++i) sum += std::exp(static_cast<double>(begin[i]) - top);
  const double nll = std::log(sum) + top - begin[target];
  EXPECT_NEAR(score.nll, nll, 1e-5 * (1 + nll)) << "row " << row;
  EXPECT_EQ(score.greedy, std::max_element(begin, begin + vocab) - begin == target);
}

TEST(EngineScore, AgreesWithLogitsAcrossPasses) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w16a16kv16"), 3), {.threads = 2});
  const size_t vocab = static_cast<size_t>(engine->config().vocab);
  // The second item straddles two passes of 512 rows, the third is not scored.
  const size_t lengths[] = {5, 700, 3, 40};
  const size_t scored[] = {5, 650, 0, 1};
  std::vector<std::vector<int32_t>> tokens, targets;
  std::vector<std::vector<TokenScore>> scores;
  std::vector<std::unique_ptr<Sequence>> sequences;
  std::vector<ScoreItem> batch;
  for (size_t i = 0; i < 4; ++i) {
    tokens.push_back(RandomTokens(engine->config(), lengths[i], 10 + i));
    targets.push_back(RandomTokens(engine->config(), scored[i], 20 + i));
    scores.emplace_back(scored[i]);
    sequences.push_back(std::make_unique<Sequence>(*engine, 800));
  }
  // One target that is certainly greedy.
  const std::vector<float> first = AllLogits(*engine, tokens[0], tokens[0].size());
  targets[0][2] =
      static_cast<int32_t>(std::max_element(first.begin() + 2 * vocab, first.begin() + 3 * vocab) -
                           (first.begin() + 2 * vocab));
  for (size_t i = 0; i < 4; ++i) {
    batch.push_back({sequences[i].get(), tokens[i], targets[i], scores[i]});
  }
  engine->Score(batch);
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(sequences[i]->length(), static_cast<int64_t>(lengths[i]));
    const std::vector<float> logits = AllLogits(*engine, tokens[i], tokens[i].size());
    for (size_t j = 0; j < scored[i]; ++j) {
      ExpectScore(logits, lengths[i] - scored[i] + j, vocab, targets[i][j], scores[i][j]);
    }
  }
  EXPECT_TRUE(scores[0][2].greedy);
}

TEST(EngineScore, RefusesTargetsOutsideTheVocabulary) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w16a16kv16"), 3), {.threads = 1});
  Sequence sequence(*engine, 8);
  const std::vector<int32_t> tokens = {1, 2};
  for (int32_t bad : {-1, 50}) {
    const std::vector<int32_t> targets = {bad};
    std::vector<TokenScore> scores(1);
    const ScoreItem item{&sequence, tokens, targets, scores};
    EXPECT_THROW(engine->Score({&item, 1}), Error);
    EXPECT_EQ(sequence.length(), 0);
  }
}

TEST(CopyPrefix, ContinuesAsTheSourceWould) {
  for (const char* scheme : {"w16a16kv16", "w4a4kv4", "w8a8kv8"}) {
    const auto engine = Engine::FromPacked(
        RandomPackedModel(FullConfig(), Scheme::Parse(scheme), 5), {.threads = 1});
    const std::vector<int32_t> prefix = RandomTokens(engine->config(), 9, 1);
    const std::vector<int32_t> rest = RandomTokens(engine->config(), 1, 2);
    Sequence source(*engine, 40), copy(*engine, 12);
    engine->Forward(source, prefix, Engine::Logits::kLast);
    // What the copy held before does not matter.
    engine->Forward(copy, RandomTokens(engine->config(), 11, 3), Engine::Logits::kLast);
    copy.CopyPrefix(source, 7);
    EXPECT_EQ(copy.length(), 7);
    source.Truncate(7);
    const auto expected = engine->Forward(source, rest, Engine::Logits::kLast);
    const std::vector<float> kept(expected.begin(), expected.end());
    const auto actual = engine->Forward(copy, rest, Engine::Logits::kLast);
    EXPECT_EQ(std::vector<float>(actual.begin(), actual.end()), kept) << scheme;
  }
}

}  // namespace
}  // namespace flatquant
