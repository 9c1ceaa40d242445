#include "flatquant/compress/calibration.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "flatquant/base/error.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/flat_adamw.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/flatquant/initial_parameters.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant::compress {
namespace {

const at::Device kCpu(at::kCPU);

struct Bench {
  explicit Bench(const ModelConfig& shape)
      : config(shape),
        model(SourceModel::Open(WriteTinyModel(shape, 31))),
        weights(LoadBlockWeights(model, 0, kCpu)),
        stream(model, RandomWindows(shape, 8, 24, 3), kCpu) {
    stream.RunBlock(weights, 3);
  }

  BlockParameters Initial(const QuantizeOptions& options) const {
    Rng rng(7);
    return InitialParameters(BlockTask{config, options, 0, weights, &stream, Amp::kOff, kCpu, {}},
                             rng);
  }

  ModelConfig config;
  SourceModel model;
  BlockWeights weights;
  ResidualStream stream;
};

TrainingOptions ShortTraining() {
  TrainingOptions options;
  options.epochs = 8;
  options.batch = 2;
  options.clip_lr = 2e-2;
  return options;
}

// At 8 bits: in networks this small a single weight that rounds the other way at
// 4 bits moves the loss by more than training does.
TEST(TrainBlock, LowersTheLossOfEveryArchitectureAndParametrisation) {
  for (const ModelConfig& config : {TinyLlama(), TinyQwen2(), TinyQwen3(), TinyWithBiases()}) {
    const Bench bench(config);
    for (const auto parametrization : {QuantizeOptions::Parametrization::kSvdCayley,
                                       QuantizeOptions::Parametrization::kDirectInverse}) {
      for (const bool per_linear_clips : {false, true}) {
        QuantizeOptions options;
        options.scheme = Scheme::Parse("w8a8kv8");
        options.parametrization = parametrization;
        options.per_linear_clips = per_linear_clips;
        int steps = 0;
        const TrainingResult result =
            TrainBlock(config, bench.weights, options.scheme, ShortTraining(), bench.stream,
                       bench.Initial(options), [&steps] { ++steps; });
        EXPECT_LT(result.loss_after, 0.9 * result.loss_before);
        EXPECT_EQ(steps, TrainingSteps(ShortTraining(), 8));
      }
    }
  }
}

// A trained network, where transforms have structure to work on.
TEST(TrainBlock, LowersTheLossOfTheDemoModelAtFourBits) {
  const SourceModel model = SourceModel::Open(testing::SourcePath("models/demo-7m"));
  const ModelConfig& config = model.config();
  const BlockWeights weights = LoadBlockWeights(model, 0, kCpu);
  ResidualStream stream(model, RandomWindows(config, 8, 64, 3), kCpu);
  stream.RunBlock(weights, 8);
  QuantizeOptions options;
  Rng rng(1);
  const BlockParameters parameters =
      InitialParameters(BlockTask{config, options, 0, weights, &stream, Amp::kOff, kCpu, {}}, rng);
  TrainingOptions training;
  training.epochs = 10;
  const TrainingResult result =
      TrainBlock(config, weights, options.scheme, training, stream, parameters, {});
  EXPECT_LT(result.loss_after, 0.9 * result.loss_before);
}

// Learned rounding with given transforms: the corrections are all that is trained,
// and the loss falls below round to nearest's.
TEST(TrainBlock, LearnedWeightsBeatRoundToNearest) {
  const SourceModel model = SourceModel::Open(testing::SourcePath("models/demo-7m"));
  const ModelConfig& config = model.config();
  const BlockWeights weights = LoadBlockWeights(model, 0, kCpu);
  ResidualStream stream(model, RandomWindows(config, 8, 64, 3), kCpu);
  stream.RunBlock(weights, 8);
  BlockParameters parameters;
  AddWeightCorrections(weights, &parameters);
  TrainingOptions training;
  training.epochs = 10;
  training.weight_lr = 2e-2;
  const TrainingResult result =
      TrainBlock(config, weights, Scheme::Parse("w4a16"), training, stream, parameters, {});
  EXPECT_LT(result.loss_after, 0.7 * result.loss_before);
  at::NoGradGuard no_grad;
  const BlockTensors folded = Fold(config, weights, parameters, at::kDouble);
  EXPECT_LE(SelfTestError(config, weights, folded, stream.inputs().narrow(0, 0, 1)),
            kSelfTestBound);
}

TEST(TrainBlock, TrainsEveryTensor) {
  const Bench bench(TinyLlama());
  const QuantizeOptions options;
  BlockParameters parameters = bench.Initial(options);
  AddWeightCorrections(bench.weights, &parameters);
  std::vector<at::Tensor> tensors = parameters.TransformTensors();
  for (const at::Tensor& clip : parameters.ClipTensors()) tensors.push_back(clip);
  for (const at::Tensor& correction : parameters.CorrectionTensors()) tensors.push_back(correction);
  // 3 Kronecker sites of 2 matrices and P_o, P_h, P_v, two tensors each; 3 diagonals;
  // clips of 7 linears, 4 sites, K and V, two tensors each; corrections of 7 linears.
  ASSERT_EQ(tensors.size(), 2u * 9 + 3 + 2u * (7 + 4 + 2) + 7);
  std::vector<at::Tensor> before;
  for (const at::Tensor& tensor : tensors) before.push_back(tensor.detach().clone());
  TrainingOptions training = ShortTraining();
  training.weight_lr = 1e-2;
  TrainBlock(bench.config, bench.weights, options.scheme, training, bench.stream, parameters, {});
  for (size_t i = 0; i < tensors.size(); ++i) {
    EXPECT_FALSE(at::equal(before[i], tensors[i])) << "tensor " << i << " did not move";
  }
}

TEST(TrainBlock, SameSeedGivesTheSameParameters) {
  const Bench bench(TinyLlama());
  const QuantizeOptions options;
  const BlockParameters first = bench.Initial(options), second = bench.Initial(options);
  TrainBlock(bench.config, bench.weights, options.scheme, ShortTraining(), bench.stream, first, {});
  TrainBlock(bench.config, bench.weights, options.scheme, ShortTraining(), bench.stream, second,
             {});
  const auto a = first.TransformTensors(), b = second.TransformTensors();
  ASSERT_EQ(a.size(), b.size());
  for (size_t i = 0; i < a.size(); ++i) EXPECT_TRUE(at::equal(a[i], b[i])) << i;
}

// Float16's gradients come multiplied by a power of two, which changes nothing.
TEST(FlatAdamW, UndoesAFactorOfTheGradients) {
  const auto train = [](double factor) {
    const at::Tensor values = at::arange(5, at::kFloat), unit = at::full({}, factor, at::kFloat);
    FlatAdamW optimizer({{{values}, 0.1}}, 3, [](int64_t) { return 1.0; });
    for (int64_t step = 0; step < 3; ++step) {
      const at::Tensor gradient = (at::arange(5, at::kFloat) - 2.5 + step) / factor;
      optimizer.Seek(step);
      optimizer.Step({gradient}, factor == 1 ? at::Tensor() : unit);
    }
    EXPECT_TRUE(optimizer.SawOnlyFinite());
    return values.clone();
  };
  EXPECT_TRUE(at::equal(train(1), train(0x1p-20)));
}

TEST(FlatAdamW, RemembersAGradientThatIsNotFinite) {
  for (const float bad :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const at::Tensor values = at::zeros({3});
    FlatAdamW optimizer({{{values}, 0.1}}, 2, [](int64_t) { return 1.0; });
    optimizer.Seek(0);
    optimizer.Step({at::tensor({1.0f, bad, 1.0f})});
    optimizer.Seek(1);
    optimizer.Step({at::ones({3})});
    EXPECT_FALSE(optimizer.SawOnlyFinite());
  }
}

// Every other of 64 windows, which are not those that a probe looks at.
TEST(SelectionLoss, IsThatOfWindowsEvenlySpaced) {
  const Bench bench(TinyLlama());
  ResidualStream stream(bench.model, RandomWindows(bench.config, 64, 24, 3), kCpu);
  stream.RunBlock(bench.weights, 8);
  const QuantizeOptions options;
  const BlockParameters parameters = bench.Initial(options);
  at::NoGradGuard no_grad;
  const BlockTensors block =
      Quantized(Fold(bench.config, bench.weights, parameters, at::kFloat), parameters,
                options.scheme, OperandType(Amp::kOff, at::kFloat));
  const auto loss = [&](const at::Tensor& windows) {
    const at::Tensor x = stream.inputs().index_select(0, windows);
    const at::Tensor y = BlockForward(bench.config, block, stream.rope(), x, Amp::kOff);
    const at::Tensor target = stream.outputs().index_select(0, windows);
    return (y - target).square().mean().item<double>();
  };
  TrainingOptions training = ShortTraining();
  training.batch = 5;  // does not divide them
  const double actual =
      SelectionLoss(bench.config, bench.weights, options.scheme, training, stream, parameters);
  // Sums in another order: of some tens of thousands of squares.
  EXPECT_NEAR(actual / loss(at::arange(0, 64, 2)), 1, 1e-5);
  EXPECT_GT(std::abs(actual / loss(at::arange(32)) - 1), 1e-4);
}

TEST(TrainBlock, NamesDivergence) {
  const Bench bench(TinyLlama());
  const QuantizeOptions options;
  const BlockParameters parameters = bench.Initial(options);
  {
    at::NoGradGuard no_grad;
    at::Tensor diagonal = parameters.site(Site::kMlpIn).diagonal;
    diagonal.fill_(std::numeric_limits<float>::quiet_NaN());
  }
  try {
    TrainBlock(bench.config, bench.weights, options.scheme, ShortTraining(), bench.stream,
               parameters, {});
    ADD_FAILURE() << "training on NaN passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "calibration.diverged");
  }
}

// Only what the scheme's grids can profit from is created and trained.
TEST(InitialParameters, FollowTheScheme) {
  const Bench bench(TinyLlama());
  const auto initial = [&](const char* scheme) {
    QuantizeOptions options;
    options.scheme = Scheme::Parse(scheme);
    return bench.Initial(options);
  };
  const BlockParameters keys_only = initial("w16a16k4v16");
  EXPECT_FALSE(keys_only.key.is_identity());
  EXPECT_TRUE(keys_only.value.is_identity());
  EXPECT_TRUE(keys_only.site(Site::kAttnIn).left.is_identity());
  EXPECT_FALSE(keys_only.weight_clips[0].max.defined());

  const BlockParameters weights_only = initial("w4a16");
  EXPECT_TRUE(weights_only.key.is_identity());
  EXPECT_FALSE(weights_only.site(Site::kAttnIn).left.is_identity());
  EXPECT_TRUE(weights_only.weight_clips[0].max.defined());
  EXPECT_FALSE(weights_only.site(Site::kAttnIn).act_clips[0].max.defined());
}

TEST(ResidualStream, GivesTheSameWhateverTheBatch) {
  const ModelConfig config = TinyLlama();
  const SourceModel model = SourceModel::Open(WriteTinyModel(config, 31));
  const TokenWindows windows = RandomWindows(config, 5, 16, 3);
  ResidualStream one(model, windows, kCpu), all(model, windows, kCpu);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const BlockWeights weights = LoadBlockWeights(model, layer, kCpu);
    one.RunBlock(weights, 1);
    all.RunBlock(weights, 5);
    // The order of sums may differ: a few roundings of values up to about 10.
    EXPECT_TRUE(at::allclose(one.outputs(), all.outputs(), 1e-5, 1e-5));
    EXPECT_TRUE(
        at::allclose(one.site_maxima(Site::kMlpOut), all.site_maxima(Site::kMlpOut), 1e-5, 1e-5));
    one.Advance();
    all.Advance();
  }
}

TEST(ResidualStream, RunsQuantizedBlocksBesideTheOriginalOnes) {
  const Bench bench(TinyLlama());
  ResidualStream stream(bench.model, RandomWindows(bench.config, 3, 16, 3), kCpu);
  EXPECT_TRUE(at::equal(stream.quantized_inputs(), stream.inputs()));
  for (int64_t layer = 0; layer < bench.config.layers; ++layer) {
    BlockTensors block = FullPrecision(LoadBlockWeights(bench.model, layer, kCpu));
    stream.RunBlock(LoadBlockWeights(bench.model, layer, kCpu), 2);
    // Nothing quantized: both streams agree.
    stream.RunQuantizedBlock(block, 2);
    EXPECT_TRUE(at::equal(stream.quantized_inputs(), stream.outputs()));
    stream.Advance();
    EXPECT_TRUE(at::equal(stream.quantized_inputs(), stream.inputs()));
  }
}

}  // namespace
}  // namespace flatquant::compress
