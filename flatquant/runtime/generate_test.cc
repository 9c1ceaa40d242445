#include "flatquant/runtime/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/packed/random_model.h"

namespace flatquant {
namespace {

PackedModel Model(std::vector<int32_t> eos = {}) {
  ModelConfig config;
  config.hidden = 16;
  config.ffn = 24;
  config.layers = 1;
  config.heads = 2;
  config.kv_heads = 1;
  config.head_dim = 8;
  config.vocab = 40;
  config.max_positions = 64;
  config.eos = std::move(eos);
  return RandomPackedModel(config, Scheme::Parse("w4a4kv4"), 5);
}

const std::vector<int32_t> kPrompt = {3, 1, 4};

TEST(GenerateTest, GreedyTokensAreThoseOfTheForwardPass) {
  const auto engine = Engine::FromPacked(Model(), {.threads = 1});
  Sequence sequence(*engine, 64);
  std::vector<int32_t> streamed;
  const GenerateResult result =
      Generate(*engine, sequence, kPrompt, {.max_tokens = 6}, [&](int32_t token) {
        streamed.push_back(token);
        return true;
      });
  EXPECT_EQ(result.stop, GenerateResult::Stop::kMaxTokens);
  EXPECT_EQ(streamed, result.tokens);
  Sequence replay(*engine, 64);
  auto logits = engine->Forward(replay, kPrompt, Engine::Logits::kLast);
  std::vector<int32_t> expected;
  for (int i = 0; i < 6; ++i) {
    const auto best =
        static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
    expected.push_back(best);
    logits = engine->Forward(replay, {&best, 1}, Engine::Logits::kLast);
  }
  EXPECT_EQ(result.tokens, expected);
}

TEST(GenerateTest, StopsAtEosWithoutEmittingIt) {
  const auto plain = Engine::FromPacked(Model(), {.threads = 1});
  Sequence sequence(*plain, 64);
  const auto tokens = Generate(*plain, sequence, kPrompt, {.max_tokens = 4}).tokens;
  const int32_t eos = tokens[2];
  const auto first = std::find(tokens.begin(), tokens.end(), eos);
  int32_t unused = 0;
  while (std::find(tokens.begin(), tokens.end(), unused) != tokens.end()) ++unused;
  const auto engine = Engine::FromPacked(Model({unused, eos}), {.threads = 1});
  Sequence again(*engine, 64);
  const GenerateResult result = Generate(*engine, again, kPrompt, {.max_tokens = 4});
  EXPECT_EQ(result.stop, GenerateResult::Stop::kEos);
  EXPECT_EQ(result.tokens, std::vector<int32_t>(tokens.begin(), first));
  Sequence ignoring(*engine, 64);
  EXPECT_EQ(Generate(*engine, ignoring, kPrompt, {.max_tokens = 4, .stop_at_eos = false}).tokens,
            tokens);
}

TEST(GenerateTest, StopsWhenTheSequenceIsFullOrTheCallbackSaysSo) {
  const auto engine = Engine::FromPacked(Model(), {.threads = 1});
  Sequence small(*engine, 5);
  const GenerateResult full = Generate(*engine, small, kPrompt, {.max_tokens = 10});
  EXPECT_EQ(full.stop, GenerateResult::Stop::kCapacity);
  EXPECT_EQ(full.tokens.size(), 3u);  // two that fit, and the one that follows them
  Sequence sequence(*engine, 64);
  const GenerateResult called =
      Generate(*engine, sequence, kPrompt, {.max_tokens = 10}, [](int32_t) { return false; });
  EXPECT_EQ(called.stop, GenerateResult::Stop::kCallback);
  EXPECT_EQ(called.tokens.size(), 1u);
}

TEST(GenerateTest, RefusesAnEmptyPrompt) {
  const auto engine = Engine::FromPacked(Model(), {.threads = 1});
  Sequence sequence(*engine, 5);
  EXPECT_THROW(Generate(*engine, sequence, {}, {}), Error);
}

}  // namespace
}  // namespace flatquant
