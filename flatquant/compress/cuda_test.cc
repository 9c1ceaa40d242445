#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/calibration.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/flatquant/initial_parameters.h"
#include "flatquant/compress/ops/attention.h"
#include "flatquant/compress/ops/fake_quant.h"
#include "flatquant/compress/ops/op_testing.h"
#include "flatquant/compress/run_plan.h"
#include "flatquant/compress/step_replay.h"
#include "flatquant/compress/tiny_model_for_test.h"

// What is different on a GPU. Skipped where LibTorch has none.
namespace flatquant::compress {
namespace {

const at::Device kGpu(at::kCUDA, 0);

bool HasGpu() {
  try {
    QuantizeOptions options;
    options.device = "cuda";
    ParseDevice(options);  // and turns deterministic kernels on
    return true;
  } catch (const Error&) {
    return false;
  }
}

class Cuda : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!HasGpu()) GTEST_SKIP() << "LibTorch can use no GPU here";
  }
};

struct Trained {
  TrainingResult result;
  std::vector<at::Tensor> parameters;
};

// Seven windows in batches of two, so that each epoch ends with a smaller batch.
// memory: of the windows.
Trained Train(const ModelConfig& config, at::Device device, Amp amp,
              QuantizeOptions::Parametrization parametrization, const StreamMemory& memory = {}) {
  const SourceModel model = SourceModel::Open(WriteTinyModel(config, 31));
  const BlockWeights weights = LoadBlockWeights(model, 0, device);
  ResidualStream stream(model, RandomWindows(config, 7, 24, 3), device, memory);
  stream.RunBlock(weights, 3);
  QuantizeOptions options;
  options.scheme = Scheme::Parse("w8a8kv8");
  options.parametrization = parametrization;
  Rng rng(7);
  const BlockParameters parameters =
      InitialParameters(BlockTask{config, options, 0, weights, &stream, amp, device, {}}, rng);
  TrainingOptions training;
  training.epochs = 8;
  training.batch = 2;
  training.clip_lr = 2e-2;
  training.amp = amp;
  Trained trained;
  trained.result = TrainBlock(config, weights, options.scheme, training, stream, parameters, {});
  trained.parameters = parameters.TransformTensors();
  const auto clips = parameters.ClipTensors();
  trained.parameters.insert(trained.parameters.end(), clips.begin(), clips.end());
  return trained;
}

constexpr auto kSvd = QuantizeOptions::Parametrization::kSvdCayley;
constexpr auto kDirect = QuantizeOptions::Parametrization::kDirectInverse;

TEST(StepReplay, DoesOnEachCallWhatTheStepDoes) {
  for (const at::Device device : {at::Device(at::kCPU), kGpu}) {
    if (!device.is_cpu() && !HasGpu()) continue;
    const at::Tensor x = at::zeros({3}, at::TensorOptions().device(device));
    const at::Tensor y = at::zeros_like(x), sum = at::zeros_like(x);
    StepReplay step(device, [&] { sum.add_((x + y).mul_(2)); });
    for (int i = 1; i <= 10; ++i) {
      x.fill_(i);
      step();
      EXPECT_EQ(sum[0].item<float>(), static_cast<float>(i * (i + 1)));
    }
  }
}

// The same arithmetic in another order: the loss starts the same but for rounding, and the
// two runs then part, some of them far. On average neither ends better.
TEST_F(Cuda, TrainsAsTheCpuDoes) {
  double sum = 0;
  int runs = 0;
  for (const ModelConfig& config : {TinyLlama(), TinyQwen2(), TinyQwen3(), TinyWithBiases()}) {
    for (const auto parametrization : {kSvd, kDirect}) {
      SCOPED_TRACE(runs);
      const Trained cpu = Train(config, at::kCPU, Amp::kOff, parametrization);
      const Trained gpu = Train(config, kGpu, Amp::kOff, parametrization);
      EXPECT_NEAR(gpu.result.loss_before / cpu.result.loss_before, 1, 0.02);
      const double log_ratio = std::log(gpu.result.loss_after / cpu.result.loss_after);
      EXPECT_NEAR(log_ratio, 0, 0.4);
      sum += log_ratio;
      ++runs;
    }
  }
  EXPECT_NEAR(sum / runs, 0, 0.15);
}

TEST_F(Cuda, AReplayedStepGivesTheBytesOfTheStep) {
  for (const Amp amp : {Amp::kOff, Amp::kBF16, Amp::kF16}) {
    const Trained replayed = Train(TinyLlama(), kGpu, amp, kSvd);
    ::setenv("FLATQUANT_CUDA_GRAPH", "0", /*overwrite=*/1);
    const Trained stepped = Train(TinyLlama(), kGpu, amp, kSvd);
    ::unsetenv("FLATQUANT_CUDA_GRAPH");
    for (size_t i = 0; i < stepped.parameters.size(); ++i) {
      EXPECT_TRUE(at::equal(replayed.parameters[i], stepped.parameters[i]))
          << i << " amp " << static_cast<int>(amp);
    }
    EXPECT_LT(replayed.result.loss_after, 0.95 * replayed.result.loss_before);
  }
}

TEST_F(Cuda, WindowsOnTheHostGiveTheSameBytes) {
  const StreamMemory files(/*bytes=*/1 << 20, /*limit=*/1, testing::ScratchFolder());
  const Trained there = Train(TinyLlama(), kGpu, Amp::kBF16, kSvd);
  const Trained here = Train(TinyLlama(), kGpu, Amp::kBF16, kSvd, files);
  for (size_t i = 0; i < there.parameters.size(); ++i) {
    EXPECT_TRUE(at::equal(there.parameters[i], here.parameters[i])) << i;
  }
}

// The grids are the CPU's but for the last bits of a sigmoid, so that values differ by as
// little, or by a step where a quotient then lies beyond a rounding boundary.
void ExpectSameGrid(const at::Tensor& actual, const at::Tensor& expected, const std::string& what) {
  const bool half = actual.scalar_type() == at::kHalf;
  const double sixteen_bits = half ? 1.0 / 2048 : 1.0 / 256;
  const double epsilon = actual.scalar_type() == at::kFloat ? kFloatEpsilon : sixteen_bits;
  const at::Tensor a = actual.to(at::kDouble), b = expected.to(at::kDouble);
  const at::Tensor difference = (a - b).abs();
  const at::Tensor apart = difference > 8 * epsilon * b.abs();
  EXPECT_LE(apart.sum().item<int64_t>(), 1 + actual.numel() / 10000) << what;
  // Of four bits: a row's largest value is at least seven steps from zero.
  const at::Tensor step = b.abs().amax(1, /*keepdim=*/true) / 7;
  EXPECT_FALSE((difference > 1.01 * step).any().item<bool>()) << what;
}

// Gradients: a row's sum of n terms goes back into its scale and its
// extreme elements, as in fake_quant_test.cc; a clip's is a sum over rows of such.
TEST_F(Cuda, FakeQuantIsAsOnTheCpu) {
  using Operation =
      at::Tensor (*)(const at::Tensor&, const at::Tensor&, const at::Tensor&, int, at::ScalarType);
  const std::vector<Operation> operations = {FakeQuantActivation, FakeQuantKv, FakeQuantWeight};
  for (const Operation operation : operations) {
    const bool weight = operation == FakeQuantWeight;
    for (const int64_t n : {1, 31, 64, 1376}) {
      for (const auto type : {at::kFloat, at::kBFloat16, at::kHalf}) {
        constexpr int64_t kRows = 67;
        std::vector<at::Tensor> outputs;
        std::vector<std::vector<at::Tensor>> gradients;
        for (const at::Device device : {at::Device(at::kCPU), kGpu}) {
          at::Tensor values = RandomNormal({kRows, n}, 1);
          values[3].zero_();
          const at::Tensor logits = RandomNormal({weight ? kRows : 1, 1}, 2) * 0.3 + 1.0;
          const at::Tensor x = Leaf(values.to(device)), max = Leaf(logits.to(device));
          const at::Tensor min = Leaf((logits * 0.9).to(device));
          // The CPU has no kernels that write half.
          const auto its_type = device.is_cpu() && type == at::kHalf ? at::kFloat : type;
          const at::Tensor g = RandomNormal({kRows, n}, 3).to(type).to(its_type).to(device);
          outputs.push_back(operation(x, max, min, 4, its_type));
          gradients.push_back(Gradients({outputs.back()}, {x, max, min}, {g}));
        }
        ExpectSameGrid(outputs[1].cpu(), outputs[0],
                       (weight ? "weights, rows of " : "rows of ") + std::to_string(n));
        const double row = 8 * std::sqrt(static_cast<double>(n)) * kFloatEpsilon * 16 * 4;
        ExpectClose(gradients[1][0].cpu(), gradients[0][0], row, "dx " + std::to_string(n));
        const double clip = row * 4 * (weight ? 1.0 : std::sqrt(static_cast<double>(kRows)));
        for (const int i : {1, 2}) {
          ExpectClose(gradients[1][i].cpu(), gradients[0][i], clip, "clip " + std::to_string(n));
        }
      }
    }
  }
}

// Probabilities, logit gradients and results have 8 significant bits, or 11; see
// attention_test.cc.
void ExpectAttentionWithinItsRounding(Amp amp, double unit) {
  struct Case {
    int64_t batch, tokens, heads, kv_heads, dim, window;
  };
  for (const Case& c : std::vector<Case>{{2, 17, 4, 2, 16, 0},
                                         {1, 128, 2, 2, 64, 0},
                                         {2, 129, 4, 1, 24, 0},
                                         {1, 300, 2, 1, 16, 5}}) {
    std::vector<std::vector<at::Tensor>> results;
    for (const bool exact : {false, true}) {
      const auto type = exact ? at::kDouble : at::kFloat;
      const auto input = [&](int64_t heads, uint64_t seed) {
        const at::Tensor values = RandomNormal({c.batch, c.tokens, heads, c.dim}, seed);
        return Leaf(values.to(at::kBFloat16).to(exact ? at::Device(at::kCPU) : kGpu), type);
      };
      const at::Tensor q = input(c.heads, 1), k = input(c.kv_heads, 2), v = input(c.kv_heads, 3);
      const at::Tensor y = CausalAttention(q, k, v, c.window, exact ? Amp::kOff : amp);
      const at::Tensor g =
          RandomNormal({c.batch, c.tokens, c.heads * c.dim}, 4).to(at::kBFloat16).to(y.options());
      results.push_back(Gradients({y}, {q, k, v}, {g}));
      results.back().push_back(y);
    }
    for (size_t i = 0; i < results[0].size(); ++i) {
      const double tolerance = 16 * unit * std::max(1.0, MaxAbs(results[1][i]));
      ExpectClose(results[0][i].cpu(), results[1][i], tolerance, "tensor " + std::to_string(i));
    }
  }
}

TEST_F(Cuda, AttentionStaysWithinItsRounding) {
  ExpectAttentionWithinItsRounding(Amp::kBF16, 0x1p-9);
  ExpectAttentionWithinItsRounding(Amp::kF16, 0x1p-12);
}

// The first block of a small model on the GPU, with grids of 8 bits, as training begins.
struct SmallBlock {
  SmallBlock(const ModelConfig& of, Amp amp)
      : config(of),
        model(SourceModel::Open(WriteTinyModel(config, 31))),
        weights(LoadBlockWeights(model, 0, kGpu)),
        stream(model, RandomWindows(config, 4, 24, 3), kGpu) {
    stream.RunBlock(weights, 4);
    options.scheme = Scheme::Parse("w8a8kv8");
    Rng rng(7);
    parameters =
        InitialParameters(BlockTask{config, options, 0, weights, &stream, amp, kGpu, {}}, rng);
  }

  ModelConfig config;
  SourceModel model;
  BlockWeights weights;
  ResidualStream stream;
  QuantizeOptions options;
  BlockParameters parameters;
};

// Float16 has three bits more than bfloat16: output and gradients of a block are nearer to
// float's. An output gradient of size 1 is what training gives these few tokens.
TEST_F(Cuda, AHalfStepIsNearerToFloatThanABfloat16Step) {
  for (const ModelConfig& config : {TinyLlama(), TinyQwen3()}) {
    const SmallBlock small(config, Amp::kOff);
    std::vector<at::Tensor> inputs = small.parameters.TransformTensors();
    for (const at::Tensor& clip : small.parameters.ClipTensors()) inputs.push_back(clip);
    const at::Tensor g = RandomNormal({4, 24, config.hidden}, 5).to(kGpu);
    std::vector<at::Tensor> results;  // gradients and output as one vector
    for (const Amp amp : {Amp::kOff, Amp::kBF16, Amp::kF16}) {
      const BlockTensors block =
          Quantized(Fold(config, small.weights, small.parameters, at::kFloat), small.parameters,
                    small.options.scheme, OperandType(amp, at::kFloat));
      const at::Tensor x = small.stream.inputs();
      const at::Tensor y = BlockForward(config, block, small.stream.rope(), x, amp);
      std::vector<at::Tensor> parts = Gradients({y}, inputs, {g});
      parts.push_back((y - x).detach());
      for (at::Tensor& part : parts) part = part.reshape({-1});
      results.push_back(at::cat(parts));
    }
    const double size = results[0].norm().item<double>();
    const double bf16 = (results[1] - results[0]).norm().item<double>() / size;
    const double f16 = (results[2] - results[0]).norm().item<double>() / size;
    EXPECT_GT(f16, 0);
    EXPECT_LT(f16, bf16);
  }
}

TEST_F(Cuda, TrainsInHalfAsInFloat) {
  for (const ModelConfig& config : {TinyLlama(), TinyQwen2()}) {
    const Trained exact = Train(config, kGpu, Amp::kOff, kSvd);
    const Trained half = Train(config, kGpu, Amp::kF16, kSvd);
    EXPECT_NEAR(half.result.loss_before / exact.result.loss_before, 1, 0.02);
    EXPECT_NEAR(std::log(half.result.loss_after / exact.result.loss_after), 0, 0.4);
  }
}

// Activations of 1e6, whose sums bfloat16 holds.
TEST_F(Cuda, NamesWhatIsBeyondHalf) {
  const auto train = [](Amp amp) {
    const SmallBlock small(TinyLlama(), amp);
    {
      at::NoGradGuard no_grad;
      at::Tensor diagonal = small.parameters.site(Site::kMlpIn).diagonal;
      diagonal.fill_(1e6);
    }
    TrainingOptions training;
    training.epochs = 1;
    training.amp = amp;
    TrainBlock(small.config, small.weights, small.options.scheme, training, small.stream,
               small.parameters, {});
  };
  EXPECT_NO_THROW(train(Amp::kBF16));
  try {
    train(Amp::kF16);
    ADD_FAILURE() << "activations beyond float16 passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "calibration.diverged");
    EXPECT_NE(std::string(error.what()).find("--amp bf16"), std::string::npos) << error.what();
  }
}

}  // namespace
}  // namespace flatquant::compress
