#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/packed/small_config_for_test.h"
#include "flatquant/runtime/engine.h"
#include "flatquant/runtime/oracle.h"

// What the tests of the engine share: small configurations, texts, and what may
// differ between two ways of computing the same logits.
namespace flatquant {

using testing::SmallConfig;

// Everything that a configuration can switch on.
inline ModelConfig FullConfig(ModelConfig config = SmallConfig()) {
  config.qk_norm = true;
  config.qkv_bias = true;
  config.o_bias = true;
  config.mlp_bias = true;
  config.tied_embeddings = true;
  config.sliding_window = 5;
  config.rope.type = RopeConfig::Type::kLlama3;
  config.rope.factor = 8;
  config.rope.original_max_positions = 32;
  return config;
}

inline std::vector<int32_t> RandomTokens(const ModelConfig& config, size_t n, uint64_t seed) {
  Rng rng(seed);
  std::vector<int32_t> tokens(n);
  for (int32_t& token : tokens) {
    token = static_cast<int32_t>(rng.Below(static_cast<uint64_t>(config.vocab)));
  }
  return tokens;
}

inline std::vector<float> AllLogits(const Engine& engine, const std::vector<int32_t>& tokens,
                                    size_t piece) {
  Sequence sequence(engine, static_cast<int64_t>(tokens.size()));
  std::vector<float> all;
  for (size_t i = 0; i < tokens.size(); i += piece) {
    const auto logits =
        engine.Forward(sequence, std::span(tokens).subspan(i, std::min(piece, tokens.size() - i)),
                       Engine::Logits::kAll);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  EXPECT_EQ(sequence.length(), static_cast<int64_t>(tokens.size()));
  return all;
}

// Largest difference in standard deviations of `expected`.
template <typename Expected>
inline double WorstInDeviations(const std::vector<float>& actual, const Expected& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double squares = 0, worst = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    squares += static_cast<double>(expected[i]) * expected[i];
    worst = std::max(worst, std::abs(static_cast<double>(actual[i]) - expected[i]));
  }
  return worst / std::sqrt(squares / static_cast<double>(actual.size()));
}

// A value within float's rounding of the middle between two codes may go either
// way, and then everything after it moves by a step of a coarse grid. A text's some
// 5000 values have float errors of about 1e-5 steps of an 8-bit grid, so that this
// happens to one text in twenty: all but two of kTexts must agree to float's accuracy
// (more than two go astray once in five hundred runs of other numbers), and none may
// be off by more than such steps explain.
inline constexpr int kTexts = 6;
inline constexpr int kSteps = 2;
inline constexpr size_t kTextTokens = 9;
inline constexpr double kFloatAgreement = 1e-4;  // standard deviations, two layers of float sums
inline constexpr double kStepAgreement = 0.5;

// How far the engine's logits are from the oracle's on a random text, in deviations.
inline double WorstAgainstOracle(const PackedModel& model, uint64_t seed) {
  const std::vector<int32_t> tokens = RandomTokens(model.config, kTextTokens, seed);
  std::vector<double> expected;
  for (const auto& row : oracle::Forward(model).Logits(tokens)) {
    expected.insert(expected.end(), row.begin(), row.end());
  }
  const auto engine = Engine::FromPacked(model, {.threads = 2});
  return WorstInDeviations(AllLogits(*engine, tokens, tokens.size()), expected);
}

// Attention over integer caches may count in fixed point. Over bytes its units are 500 times
// float's: of an activation grid of 8 bits, every text then has values that go the other
// way, and only the second bound holds. Over nibbles they are 2^-8 of the largest query, and
// values of every grid go the other way, of one of 4 bits one in fifty: these small models'
// logits then move by a good part of their deviation, though by far less than the 5
// deviations by which the worst of some 5000 unrelated ones differs. Transforms on tiles of
// bfloat16 have two terms before a grid of 8 bits, and attention over 16-bit caches has two
// there: they leave 2^-15 and 2^-16 of a value, up to a hundredth of a step, and again every
// text takes steps. FLATQUANT_ISA=avx512 has all these tests run with float's accuracy.
inline constexpr double kCoarseAgreement = 2.0;

inline bool CountsInNibbles(const Scheme& scheme) {
  return BestKernel<AttentionKernel>().kernel->nibble_rounding > 0 && scheme.k_bits <= 4 &&
         scheme.v_bits <= 4;
}

inline bool AllTextsTakeSteps(const Scheme& scheme) {
  const bool is_fixed = BestKernel<AttentionKernel>().kernel->byte_rounding > 0;
  const bool has_terms = BestKernel<KronQuantizeKernel>().kernel->reads_tiles;
  return CountsInNibbles(scheme) ||
         (scheme.act_bits == 8 && (has_terms || (is_fixed && scheme.k_bits <= 8)));
}

inline double StepAgreement(const Scheme& scheme) {
  return CountsInNibbles(scheme) && scheme.act_bits <= 4 ? kCoarseAgreement : kStepAgreement;
}

inline void ExpectAgreement(std::vector<double> worst, bool has_grids, bool all_steps = false,
                            double step_agreement = kStepAgreement) {
  std::sort(worst.begin(), worst.end());
  if (!all_steps) {
    EXPECT_LT(worst[worst.size() - 1 - (has_grids ? kSteps : 0)], kFloatAgreement);
  }
  EXPECT_LT(worst.back(), has_grids ? step_agreement : kFloatAgreement);
}

}  // namespace flatquant
