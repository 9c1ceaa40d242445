// Sites with a constant step and more columns than channels: the engine's integers
// against the oracle's doubles.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

namespace flatquant {
namespace {

class FlattenedTest : public ::testing::TestWithParam<const char*> {};

// With 16-bit weights the pieces are multiplied as floats.
TEST_P(FlattenedTest, AgreesWithTheOracle) {
  for (const ModelConfig& config : {SmallConfig(), FullConfig()}) {
    std::vector<double> worst;
    for (uint64_t seed = 1; seed <= kTexts; ++seed) {
      PackedModel model = RandomPackedModel(config, Scheme::Parse(GetParam()), seed);
      FlattenRandomModel(seed + 100, &model);
      worst.push_back(WorstAgainstOracle(model, seed));
    }
    ExpectAgreement(worst, true);
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, FlattenedTest, ::testing::Values("w4a4", "w8a8", "w16a4"),
                         [](const auto& info) { return std::string(info.param); });

// Some blocks flattened, some not, some sites with no column to spare.
TEST(FlattenedSitesTest, AllKindsInOneModel) {
  const Scheme scheme = Scheme::Parse("w4a8");
  std::vector<double> worst;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    PackedModel model = RandomPackedModel(SmallConfig(), scheme, seed);
    PackedModel flattened = model;
    FlattenRandomModel(seed + 100, &flattened);
    model.blocks[1] = flattened.blocks[1];
    PackedSite& site = model.blocks[0].site(Site::kMlpOut);
    site = {};
    site.act_bits = 8;
    site.act_scale = Tensor::Floats({1}, {0.02f});
    worst.push_back(WorstAgainstOracle(model, seed));
  }
  ExpectAgreement(worst, true, AllTextsTakeSteps(scheme));
}

}  // namespace
}  // namespace flatquant
