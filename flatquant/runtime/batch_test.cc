// A pass over several sequences against the same sequences run one by one.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

namespace flatquant {
namespace {

using Texts = std::vector<std::vector<int32_t>>;

// Runs steps[s][i], the tokens of step s for sequence i (none: it sits out), and
// returns all logits in order.
std::vector<float> RunSteps(const Engine& engine, const std::vector<Texts>& steps, bool batched) {
  std::vector<std::unique_ptr<Sequence>> sequences;
  for (size_t i = 0; i < steps[0].size(); ++i) {
    sequences.push_back(std::make_unique<Sequence>(engine, 2000));
  }
  std::vector<float> all;
  for (const Texts& step : steps) {
    std::vector<BatchItem> batch;
    for (size_t i = 0; i < step.size(); ++i) {
      if (!step[i].empty()) batch.push_back({sequences[i].get(), step[i]});
    }
    const size_t pieces = batched ? 1 : batch.size();
    for (size_t piece = 0; piece < pieces; ++piece) {
      const auto logits = batched ? engine.ForwardBatch(batch)
                                  : engine.Forward(*batch[piece].sequence, batch[piece].tokens,
                                                   Engine::Logits::kLast);
      all.insert(all.end(), logits.begin(), logits.end());
    }
  }
  return all;
}

// Prompts of different lengths, then tokens one by one, while one sequence sits
// out and another gets a second prompt.
std::vector<Texts> SomeSteps(const ModelConfig& config, uint64_t seed) {
  const auto text = [&](size_t n) { return RandomTokens(config, n, seed++); };
  return {{text(7), text(1), text(12)},
          {text(1), text(1), text(1)},
          {text(1), {}, text(1)},
          {text(1), text(5), text(1)},
          {text(1), text(1), text(1)}};
}

class BatchTest : public ::testing::TestWithParam<const char*> {};

TEST_P(BatchTest, AgreesWithSequencesOneByOne) {
  const Scheme scheme = Scheme::Parse(GetParam());
  std::vector<double> worst;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    const auto engine =
        Engine::FromPacked(RandomPackedModel(FullConfig(), scheme, seed), {.threads = 2});
    const auto steps = SomeSteps(engine->config(), 10 * seed);
    worst.push_back(
        WorstInDeviations(RunSteps(*engine, steps, true), RunSteps(*engine, steps, false)));
  }
  ExpectAgreement(worst, scheme.act_bits < 16 || scheme.k_bits < 16);
}

INSTANTIATE_TEST_SUITE_P(Schemes, BatchTest,
                         ::testing::Values("w16a16", "w4a16", "w4a4kv4", "w8a8"),
                         [](const auto& info) { return std::string(info.param); });

// More rows than a pass takes: items are cut where the pass is full, and passes
// without an item's end return no logits.
TEST(BatchTest, LongItemsAreCutIntoPasses) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w16a16"), 2), {.threads = 2});
  const auto text = [&](size_t n) { return RandomTokens(engine->config(), n, n); };
  const std::vector<Texts> steps = {{text(3), text(1300), text(2), text(509), text(1)}};
  EXPECT_LT(WorstInDeviations(RunSteps(*engine, steps, true), RunSteps(*engine, steps, false)),
            kFloatAgreement);
}

TEST(BatchTest, ABadItemLeavesEverySequenceAsItWas) {
  const auto engine = Engine::FromPacked(
      RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4kv4"), 1), {.threads = 1});
  Sequence a(*engine, 4), b(*engine, 2);
  const std::vector<int32_t> good = {1, 2, 3}, bad = {50};
  const auto error_of = [&](std::span<const int32_t> first, std::span<const int32_t> second) {
    try {
      const BatchItem batch[] = {{&a, first}, {&b, second}};
      engine->ForwardBatch(batch);
    } catch (const Error& error) {
      return std::string(error.name());
    }
    return std::string("none");
  };
  EXPECT_EQ(error_of(good, bad), "runtime.bad_token");
  EXPECT_EQ(error_of(good, good), "runtime.context_full");
  EXPECT_EQ(a.length(), 0);
  EXPECT_EQ(error_of(good, {good.data(), 2}), "none");
  EXPECT_EQ(a.length(), 3);
  EXPECT_EQ(b.length(), 2);
}

}  // namespace
}  // namespace flatquant
