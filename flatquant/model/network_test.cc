#include "flatquant/model/network.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

namespace flatquant {
namespace {

using ::testing::ElementsAre;

ModelConfig Grouped() {
  ModelConfig config;
  config.hidden = 96;
  config.ffn = 160;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 32;
  return config;
}

TEST(NetworkTest, SitesPartitionTheLinears) {
  size_t total = 0;
  for (Site site : kSites) {
    for (Linear linear : LinearsOf(site)) EXPECT_EQ(SiteOf(linear), site) << LinearName(linear);
    total += LinearsOf(site).size();
  }
  EXPECT_EQ(total, kLinears.size());
  EXPECT_THAT(LinearsOf(Site::kAttnIn), ElementsAre(Linear::kQ, Linear::kK, Linear::kV));
  EXPECT_THAT(LinearsOf(Site::kAttnOut), ElementsAre(Linear::kO));
  EXPECT_THAT(LinearsOf(Site::kMlpIn), ElementsAre(Linear::kGate, Linear::kUp));
  EXPECT_THAT(LinearsOf(Site::kMlpOut), ElementsAre(Linear::kDown));
}

TEST(NetworkTest, ShapesWithGroupedHeads) {
  const ModelConfig config = Grouped();
  const auto shape = [&](Linear linear) {
    const LinearShape s = ShapeOf(config, linear);
    return std::pair(s.rows, s.cols);
  };
  EXPECT_EQ(shape(Linear::kQ), std::pair(int64_t{192}, int64_t{96}));
  EXPECT_EQ(shape(Linear::kK), std::pair(int64_t{64}, int64_t{96}));
  EXPECT_EQ(shape(Linear::kV), std::pair(int64_t{64}, int64_t{96}));
  EXPECT_EQ(shape(Linear::kO), std::pair(int64_t{96}, int64_t{192}));
  EXPECT_EQ(shape(Linear::kGate), std::pair(int64_t{160}, int64_t{96}));
  EXPECT_EQ(shape(Linear::kUp), std::pair(int64_t{160}, int64_t{96}));
  EXPECT_EQ(shape(Linear::kDown), std::pair(int64_t{96}, int64_t{160}));
  for (Linear linear : kLinears) {
    EXPECT_EQ(SiteWidth(config, SiteOf(linear)), ShapeOf(config, linear).cols);
  }
}

TEST(NetworkTest, Biases) {
  ModelConfig config = Grouped();
  const auto biased = [&] {
    std::vector<Linear> linears;
    for (Linear linear : kLinears) {
      if (HasBias(config, linear)) linears.push_back(linear);
    }
    return linears;
  };
  EXPECT_THAT(biased(), ElementsAre());
  config.qkv_bias = true;
  EXPECT_THAT(biased(), ElementsAre(Linear::kQ, Linear::kK, Linear::kV));
  config.qkv_bias = false;
  config.o_bias = true;
  EXPECT_THAT(biased(), ElementsAre(Linear::kO));
  config.o_bias = false;
  config.mlp_bias = true;
  EXPECT_THAT(biased(), ElementsAre(Linear::kGate, Linear::kUp, Linear::kDown));
}

TEST(NetworkTest, HuggingFaceNames) {
  EXPECT_EQ(LinearPath(3, Linear::kQ), "model.layers.3.self_attn.q_proj");
  EXPECT_EQ(LinearPath(0, Linear::kO), "model.layers.0.self_attn.o_proj");
  EXPECT_EQ(LinearPath(12, Linear::kDown), "model.layers.12.mlp.down_proj");
  EXPECT_EQ(NormPath(3, Norm::kInput), "model.layers.3.input_layernorm");
  EXPECT_EQ(NormPath(3, Norm::kPostAttention), "model.layers.3.post_attention_layernorm");
  EXPECT_EQ(NormPath(3, Norm::kQ), "model.layers.3.self_attn.q_norm");
  EXPECT_EQ(NormPath(3, Norm::kK), "model.layers.3.self_attn.k_norm");
  EXPECT_EQ(LinearName(Linear::kGate), "gate_proj");
  EXPECT_EQ(SiteName(Site::kMlpOut), "mlp_out");
}

}  // namespace
}  // namespace flatquant
