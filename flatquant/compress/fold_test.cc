#include "flatquant/compress/fold.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/ops/fake_quant.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/compress/tiny_model_for_test.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

const at::Device kCpu(at::kCPU);

at::Tensor Normal(at::IntArrayRef shape, double mean, double deviation, Rng& rng) {
  at::Tensor values = at::empty(shape, at::kFloat);
  for (int64_t i = 0; i < values.numel(); ++i) {
    values.data_ptr<float>()[i] = static_cast<float>(mean + deviation * rng.Normal());
  }
  return values;
}

InvertibleMatrix RandomMatrix(int64_t n, Rng& rng) {
  // Condition numbers of a few, as trained ones have.
  const at::Tensor s = Normal({n}, 0, 0.3, rng).exp().to(at::kDouble);
  return InvertibleMatrix::Fixed(at::matmul(RandomOrthogonal(n, rng) * s, RandomOrthogonal(n, rng)),
                                 "test");
}

ClipLogits RandomClip(at::IntArrayRef shape, Rng& rng) {
  return {Normal(shape, 1, 1, rng), Normal(shape, 1, 1, rng)};
}

// Every part of BlockParameters present and far from the identity.
BlockParameters RandomParameters(const ModelConfig& config, Rng& rng) {
  BlockParameters parameters;
  for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
    const int64_t width = SiteWidth(config, site);
    const KronShape shape = KronFactors(width);
    parameters.site(site).left = RandomMatrix(shape.left, rng);
    parameters.site(site).right = RandomMatrix(shape.right, rng);
    parameters.site(site).diagonal = Normal({width}, 0, 0.5, rng).exp();
  }
  parameters.site(Site::kAttnOut).left = RandomMatrix(config.heads, rng);
  parameters.key = RandomMatrix(config.head_dim, rng);
  parameters.value = RandomMatrix(config.head_dim, rng);
  for (const Linear which : kLinears) {
    parameters.weight_clips[static_cast<size_t>(which)] =
        RandomClip({ShapeOf(config, which).rows, 1}, rng);
  }
  for (BlockParameters::SiteParameters& site : parameters.sites) {
    site.act_clips = {RandomClip({1}, rng)};
  }
  parameters.k_clip = RandomClip({1}, rng);
  parameters.v_clip = RandomClip({1}, rng);
  return parameters;
}

class FoldTest : public ::testing::TestWithParam<ModelConfig> {
 protected:
  FoldTest()
      : config_(GetParam()),
        model_(SourceModel::Open(WriteTinyModel(config_, 17))),
        weights_(LoadBlockWeights(model_, 0, kCpu)),
        rng_(23),
        parameters_(RandomParameters(config_, rng_)),
        folded_(Fold(config_, weights_, parameters_, at::kDouble)) {}

  ModelConfig config_;
  SourceModel model_;
  BlockWeights weights_;
  Rng rng_;
  BlockParameters parameters_;
  BlockTensors folded_;
};

TEST_P(FoldTest, FoldedBlockComputesWhatTheOriginalDoes) {
  const at::Tensor x = RandomBlockInput(20, config_.hidden, 5, kCpu);
  EXPECT_LE(SelfTestError(config_, weights_, folded_, x), 1e-5);
}

// Each part that is folded must matter: leaving one out has to fail the self-test.
TEST_P(FoldTest, SelfTestNoticesEachPartThatIsForgotten) {
  const at::Tensor x = RandomBlockInput(20, config_.hidden, 5, kCpu);
  const auto expect_failure = [&](const char* part, auto&& forget) {
    BlockTensors broken = folded_;
    forget(&broken);
    EXPECT_GE(SelfTestError(config_, weights_, broken, x), 10 * kSelfTestBound) << part;
  };
  expect_failure("input norm", [&](BlockTensors* b) { b->input_norm = weights_.input_norm; });
  expect_failure("post-attention norm",
                 [&](BlockTensors* b) { b->post_attention_norm = weights_.post_attention_norm; });
  expect_failure("k transform", [](BlockTensors* b) { b->k_transform = b->k_transform.t(); });
  expect_failure("q transform", [](BlockTensors* b) { b->q_transform = b->q_transform.t(); });
  for (const Linear which : kLinears) {
    const size_t i = static_cast<size_t>(which);
    expect_failure("weight", [&](BlockTensors* b) { b->weights[i] = weights_.weights[i]; });
  }
  if (config_.qkv_bias) {
    const size_t v = static_cast<size_t>(Linear::kV);
    expect_failure("v bias", [&](BlockTensors* b) { b->biases[v] = weights_.biases[v]; });
  }
  for (const Site site : kSites) {
    if (!folded_.site(site).left.defined() || folded_.site(site).left.size(0) == 1) continue;
    expect_failure("left", [&](BlockTensors* b) { b->site(site).left = b->site(site).left.t(); });
  }
}

TEST_P(FoldTest, NanFailsTheSelfTest) {
  BlockTensors broken = folded_;
  broken.input_norm = broken.input_norm * std::numeric_limits<double>::quiet_NaN();
  const at::Tensor x = RandomBlockInput(4, config_.hidden, 5, kCpu);
  EXPECT_FALSE(SelfTestError(config_, weights_, broken, x) <= kSelfTestBound);
}

// The codes that are written stand for what training saw.
TEST_P(FoldTest, PackedWeightsAreTheFakeQuantizedOnes) {
  for (const int bits : {2, 3, 4, 8}) {
    const Scheme scheme{bits, 4, 4, 4};
    const PackedBlock packed = PackBlock(
        folded_, weights_, RoundWeights(folded_, parameters_, scheme), parameters_, scheme);
    for (const Linear which : kLinears) {
      const size_t i = static_cast<size_t>(which);
      const LinearShape shape = ShapeOf(config_, which);
      const at::Tensor expected =
          FakeQuantWeight(folded_.weights[i], parameters_.weight_clips[i].max.to(at::kDouble),
                          parameters_.weight_clips[i].min.to(at::kDouble), bits, at::kDouble);
      at::Tensor actual = at::empty({shape.rows, shape.cols}, at::kFloat);
      for (int64_t row = 0; row < shape.rows; ++row) {
        DequantizeRow(packed.linear(which), row, shape.cols,
                      actual.data_ptr<float>() + row * shape.cols);
      }
      // Scales are rounded to float32: 2^-24 of values up to the row's maximum.
      const double tolerance = expected.abs().max().item<double>() * 2e-7;
      EXPECT_LE((actual.to(at::kDouble) - expected).abs().max().item<double>(), tolerance)
          << LinearName(which) << " at " << bits << " bits";
    }
  }
}

// Learned rounding: the codes are those of the corrected weights that training saw,
// and a correction of half a step or more moves them.
TEST_P(FoldTest, CorrectionsMoveCodes) {
  const Scheme scheme = Scheme::Parse("w4a4kv4");
  const QuantizedWeights plain = RoundWeights(folded_, parameters_, scheme);
  BlockParameters corrected = parameters_;
  AddWeightCorrections(weights_, &corrected);
  at::NoGradGuard no_grad;
  for (at::Tensor& correction : corrected.weight_corrections) {
    correction.copy_(Normal(correction.sizes(), 0, 0.5, rng_));
  }
  const QuantizedWeights moved = RoundWeights(folded_, corrected, scheme);
  BlockTensors folded = folded_;
  for (at::Tensor& weight : folded.weights) weight = weight.to(at::kFloat);
  const BlockTensors trained = Quantized(folded, corrected, scheme);
  for (size_t i = 0; i < kLinears.size(); ++i) {
    EXPECT_FALSE(at::equal(moved[i].codes, plain[i].codes));
    // A weight within float32's rounding of the middle between two codes may fall
    // either way; with some hundred weights a linear that is rare.
    const at::Tensor differ = (trained.weights[i] - moved[i].Values()).abs() > 0.5 * moved[i].scale;
    EXPECT_LE(differ.sum().item<int64_t>(), 1) << LinearName(kLinears[i]);
  }
}

TEST_P(FoldTest, PackedBlockHasTheSchemesGrids) {
  const Scheme scheme{4, 6, 5, 3};
  const PackedBlock packed =
      PackBlock(folded_, weights_, RoundWeights(folded_, parameters_, scheme), parameters_, scheme);
  EXPECT_EQ(packed.linear(Linear::kUp).bits, 4);
  EXPECT_EQ(packed.site(Site::kMlpOut).act_bits, 6);
  EXPECT_EQ(packed.cache.k_bits, 5);
  EXPECT_EQ(packed.cache.v_bits, 3);
  EXPECT_EQ(packed.q_norm.defined(), config_.qk_norm);
  EXPECT_FALSE(packed.site(Site::kAttnOut).right.defined());
  const float expected = parameters_.k_clip.max.sigmoid().item<float>();
  EXPECT_NEAR(packed.cache.k_clip.max, expected, 1e-6);
}

TEST_P(FoldTest, SixteenBitsKeepUntouchedWeightsByteForByte) {
  const BlockParameters nothing;
  const BlockTensors plain = Fold(config_, weights_, nothing, at::kDouble);
  const PackedBlock packed = PackBlock(plain, weights_, {}, nothing, Scheme{16, 16, 16, 16});
  for (const Linear which : kLinears) {
    const Tensor source = model_.Weight(0, which);
    const Tensor& kept = packed.linear(which).weight;
    ASSERT_EQ(kept.dtype, source.dtype);
    ASSERT_EQ(kept.shape, source.shape);
    EXPECT_EQ(std::memcmp(kept.data, source.data, source.bytes()), 0) << LinearName(which);
  }
}

std::string ShapeName(const ::testing::TestParamInfo<ModelConfig>& info) {
  return std::string(ArchitectureName(info.param.architecture)) +
         (info.param.o_bias ? "_biases" : "");
}

INSTANTIATE_TEST_SUITE_P(Architectures, FoldTest,
                         ::testing::Values(TinyLlama(), TinyQwen2(), TinyQwen3(), TinyWithBiases()),
                         ShapeName);

TEST(PackBlock, KeepsTheSourcesElementTypeAtSixteenBits) {
  const ModelConfig config = TinyLlama();
  const SourceModel model = SourceModel::Open(WriteTinyModel(config, 1));
  BlockWeights weights = LoadBlockWeights(model, 0, kCpu);
  weights.dtypes.fill(DType::kBF16);
  Rng rng(2);
  const BlockParameters parameters = RandomParameters(config, rng);
  const BlockTensors folded = Fold(config, weights, parameters, at::kDouble);
  const PackedBlock packed = PackBlock(folded, weights, {}, parameters, Scheme{16, 8, 16, 16});
  EXPECT_EQ(packed.linear(Linear::kQ).weight.dtype, DType::kBF16);
  EXPECT_FALSE(packed.linear(Linear::kQ).scale.defined());
}

}  // namespace
}  // namespace flatquant::compress
