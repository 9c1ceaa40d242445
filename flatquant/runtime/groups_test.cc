// Weights with several scales per row: the engine's floats against the oracle's doubles, on
// widths that groups do not divide.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/engine_testing.h"

namespace flatquant {
namespace {

class GroupsTest : public ::testing::TestWithParam<const char*> {};

TEST_P(GroupsTest, AgreeWithTheOracle) {
  const Scheme scheme = Scheme::Parse(GetParam());
  for (const int64_t group_size : {5, 16}) {
    std::vector<double> worst;
    for (uint64_t seed = 1; seed <= kTexts; ++seed) {
      PackedModel model = RandomPackedModel(SmallConfig(), scheme, seed);
      GroupRandomModel(seed + 100, group_size, &model);
      worst.push_back(WorstAgainstOracle(model, seed));
    }
    ExpectAgreement(worst, scheme.act_bits < 16, AllTextsTakeSteps(scheme), StepAgreement(scheme));
  }
}

INSTANTIATE_TEST_SUITE_P(Schemes, GroupsTest,
                         ::testing::Values("w4a16", "w3a16", "w8a8", "w4a4kv4"),
                         [](const auto& info) { return std::string(info.param); });

// Linears of one site with and without groups: q is multiplied as floats, k and v as integers.
TEST(GroupsOfSomeLinearsTest, StandBesideOthers) {
  const Scheme scheme = Scheme::Parse("w4a8");
  std::vector<double> worst;
  for (uint64_t seed = 1; seed <= kTexts; ++seed) {
    PackedModel model = RandomPackedModel(SmallConfig(), scheme, seed);
    PackedModel grouped = model;
    GroupRandomModel(seed + 100, 5, &grouped);
    for (size_t i = 0; i < model.blocks.size(); ++i) {
      for (Linear which : {Linear::kQ, Linear::kUp, Linear::kDown}) {
        model.blocks[i].linear(which) = grouped.blocks[i].linear(which);
      }
    }
    worst.push_back(WorstAgainstOracle(model, seed));
  }
  ExpectAgreement(worst, true, AllTextsTakeSteps(scheme));
}

}  // namespace
}  // namespace flatquant
