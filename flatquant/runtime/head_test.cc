// Quantized output projections: against the oracle, and tied to the embedding.
#include "flatquant/packed/head.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

namespace flatquant {
namespace {

struct Case {
  int bits;
  int act_bits;
  bool tied;
};

class QuantizedHeadTest : public ::testing::TestWithParam<Case> {};

TEST_P(QuantizedHeadTest, AgreesWithTheOracle) {
  const Case& c = GetParam();
  ModelConfig config = SmallConfig();
  config.tied_embeddings = c.tied;
  std::vector<double> worst;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    PackedModel model = RandomPackedModel(config, Scheme::Parse("w16a16"), seed);
    QuantizeHead(c.bits, c.act_bits, &model);
    worst.push_back(WorstAgainstOracle(model, seed));
  }
  ExpectAgreement(worst, c.act_bits < 16);
}

INSTANTIATE_TEST_SUITE_P(Heads, QuantizedHeadTest,
                         ::testing::Values(Case{8, 8, false}, Case{8, 8, true}, Case{8, 16, true},
                                           Case{4, 8, false}, Case{4, 16, true}),
                         [](const auto& info) {
                           const Case& c = info.param;
                           return "w" + std::to_string(c.bits) + "a" + std::to_string(c.act_bits) +
                                  (c.tied ? "tied" : "");
                         });

TEST(QuantizedHeadTest, BytesPerPassLeaveOutAnEmbeddingOfItsOwn) {
  ModelConfig config = SmallConfig();
  const auto bytes = [&](bool tied) {
    config.tied_embeddings = tied;
    PackedModel model = RandomPackedModel(config, Scheme{}, 1);
    QuantizeHead(8, 8, &model);
    const auto engine = Engine::FromPacked(model, {.threads = 1});
    return std::pair(engine->bytes_per_pass(), engine->weight_bytes());
  };
  EXPECT_EQ(bytes(true).first, bytes(false).first);
  EXPECT_EQ(bytes(false).second - bytes(false).first,
            static_cast<uint64_t>(config.vocab * config.hidden * 2));
}

}  // namespace
}  // namespace flatquant
