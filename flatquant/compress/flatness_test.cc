#include "flatquant/compress/flatness.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/quarot/hadamard.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant::compress {
namespace {

const at::Device kCpu(at::kCPU);

at::Tensor Doubles(std::vector<double> values) {
  return at::tensor(values, at::TensorOptions().dtype(at::kDouble));
}

TEST(Flatness, IsTheDistanceFromTheFlatLineOfEqualEnergy) {
  EXPECT_EQ(Flatness(Doubles({3, 3, 3, 3})), 0);
  EXPECT_EQ(Flatness(Doubles({0, 0})), 0);
  // r = 5 of {1, 7}: the distances are 0.8 and 0.4.
  EXPECT_NEAR(Flatness(Doubles({1, 7})), std::sqrt((0.64 + 0.16) / 2), 1e-15);
  // All in one of n channels: r = m / sqrt(n).
  EXPECT_NEAR(Flatness(Doubles({4, 0, 0, 0})), std::sqrt(2 - 2 / std::sqrt(4.0)), 1e-15);
}

TEST(Flatness, KnowsNeitherScaleNorOrder) {
  const double flatness = Flatness(Doubles({1, 2, 5, 9}));
  EXPECT_NEAR(Flatness(Doubles({5e-9, 9e-9, 1e-9, 2e-9})), flatness, 1e-14);
}

// A block of random weights with transforms, diagonals and biases.
struct Example {
  ModelConfig config;
  BlockWeights weights;
  BlockParameters parameters;
  at::Tensor x;
  RopeTables rope;
};

Example MakeExample(const ModelConfig& config) {
  const SourceModel model = SourceModel::Open(WriteTinyModel(config, 5));
  Example example{config, LoadBlockWeights(model, 0, kCpu), {}, {}, {}};
  Rng rng(7);
  for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
    const int64_t width = SiteWidth(config, site);
    const KronShape shape = KronFactors(width);
    BlockParameters::SiteParameters& chosen = example.parameters.site(site);
    chosen.left = InvertibleMatrix::DirectInverse(shape.left, rng, kCpu);
    chosen.right = InvertibleMatrix::DirectInverse(shape.right, rng, kCpu);
    chosen.diagonal = at::linspace(0.5, 2, width);
  }
  example.parameters.site(Site::kAttnOut).left =
      InvertibleMatrix::SvdCayley(config.heads, rng, kCpu);
  example.parameters.value = InvertibleMatrix::SvdCayley(config.head_dim, rng, kCpu);
  example.x = RandomBlockInput(12, config.hidden, 3, kCpu).view({3, 4, config.hidden});
  example.rope = MakeRopeTables(config, 4, at::kFloat, kCpu);
  return example;
}

// Of what the original block's linears read, found without ChannelMagnitudes.
TEST(ChannelMagnitudes, OfTheOriginalAreNormsOfItsActivationsAndColumns) {
  const Example example = MakeExample(TinyWithBiases());
  const BlockTensors block = FullPrecision(example.weights);
  const auto sites = ChannelMagnitudes(example.config, block, example.rope, example.x);
  BlockForward(example.config, block, example.rope, example.x, Amp::kOff,
               [&](Site site, const at::Tensor& activation) {
                 const at::Tensor expected =
                     at::norm(activation.to(at::kDouble).flatten(0, 1), 2, 0);
                 const at::Tensor& actual = sites[static_cast<size_t>(site)].activation;
                 EXPECT_TRUE(at::allclose(actual, expected, 1e-5)) << static_cast<int>(site);
               });
  const at::Tensor gate_up = at::cat({block.weights[static_cast<size_t>(Linear::kGate)],
                                      block.weights[static_cast<size_t>(Linear::kUp)]});
  EXPECT_TRUE(at::allclose(sites[static_cast<size_t>(Site::kMlpIn)].weight,
                           at::norm(gate_up.to(at::kDouble), 2, 0), 1e-6));
}

// Behind transforms: (x d) (P_L (x) P_R) written out as one dense product, x being the
// original's activation. attn_out carries the heads' matrix and V's.
TEST(ChannelMagnitudes, OfAFoldedBlockAreThoseOfTransformedActivations) {
  const Example example = MakeExample(TinyLlama());
  const ModelConfig& config = example.config;
  const BlockTensors folded = Fold(config, example.weights, example.parameters, at::kFloat);
  const auto sites = ChannelMagnitudes(config, folded, example.rope, example.x);
  const auto observe = [&](Site site, const at::Tensor& activation) {
    const BlockParameters::SiteParameters& chosen = example.parameters.site(site);
    const at::Tensor left = chosen.left.Evaluate(at::kDouble).matrix;
    const at::Tensor right = site == Site::kAttnOut
                                 ? example.parameters.value.Evaluate(at::kDouble).matrix
                                 : chosen.right.Evaluate(at::kDouble).matrix;
    at::Tensor rows = activation.to(at::kDouble).flatten(0, 1);
    if (chosen.diagonal.defined()) rows = rows * chosen.diagonal.to(at::kDouble);
    const at::Tensor expected = at::norm(at::matmul(rows, at::kron(left, right)), 2, 0);
    // Float32 sums of a few dozen products on the way.
    EXPECT_TRUE(at::allclose(sites[static_cast<size_t>(site)].activation, expected, 1e-4))
        << static_cast<int>(site);
  };
  BlockForward(config, FullPrecision(example.weights), example.rope, example.x, Amp::kOff, observe);
  EXPECT_TRUE(at::allclose(
      sites[static_cast<size_t>(Site::kMlpOut)].weight,
      at::norm(folded.weights[static_cast<size_t>(Linear::kDown)].to(at::kDouble), 2, 0), 1e-5));
}

TEST(ChannelMagnitudes, DoNotDependOnQuantizers) {
  const Example example = MakeExample(TinyQwen2());
  const BlockTensors folded = Fold(example.config, example.weights, example.parameters, at::kFloat);
  const auto expected = ChannelMagnitudes(example.config, folded, example.rope, example.x);
  const auto actual = ChannelMagnitudes(
      example.config, FloatForward(folded, example.parameters, Scheme::Parse("w4a4kv4")),
      example.rope, example.x);
  for (const Site site : kSites) {
    const size_t s = static_cast<size_t>(site);
    EXPECT_TRUE(at::equal(actual[s].activation, expected[s].activation));
  }
}

TEST(CompareFlatness, AHadamardMatrixFlattensAnOutlierChannel) {
  ModelConfig config = TinyLlama();
  config.hidden = 16;                     // 4 x 4: both have Hadamard matrices
  Example example = MakeExample(config);  // channel 0 of its norms is an outlier
  // Enough tokens that a channel's magnitude is no accident.
  example.x = RandomBlockInput(512, config.hidden, 3, kCpu).view({128, 4, config.hidden});
  Rng rng(1);
  for (const Site site : {Site::kAttnIn, Site::kMlpIn}) {
    BlockParameters::SiteParameters& chosen = example.parameters.site(site);
    const KronShape shape = KronFactors(config.hidden);
    chosen.diagonal = at::Tensor();
    chosen.left = InvertibleMatrix::Fixed(RandomRotation(shape.left, rng), "left");
    chosen.right = InvertibleMatrix::Fixed(RandomRotation(shape.right, rng), "right");
  }
  const auto sites =
      CompareFlatness(example.config, FullPrecision(example.weights),
                      Fold(example.config, example.weights, example.parameters, at::kFloat),
                      example.rope, example.x);
  for (const Site site : {Site::kAttnIn, Site::kMlpIn}) {
    const SiteFlatness& flatness = sites[static_cast<size_t>(site)];
    EXPECT_GT(flatness.activation_before, 0.5);
    EXPECT_LT(flatness.activation_after, 0.5 * flatness.activation_before);
    EXPECT_GT(flatness.weight_before, 0);
    EXPECT_GT(flatness.weight_after, 0);
  }
}

}  // namespace
}  // namespace flatquant::compress
