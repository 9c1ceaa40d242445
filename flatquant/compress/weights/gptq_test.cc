#include "flatquant/compress/weights/gptq.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/rng.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/tiny_model_for_test.h"
#include "flatquant/compress/weights/gptq_block.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

at::Tensor Normal(at::IntArrayRef shape, Rng& rng) {
  at::Tensor values = at::empty(shape, at::kDouble);
  for (int64_t i = 0; i < values.numel(); ++i) values.data_ptr<double>()[i] = rng.Normal();
  return values;
}

// A weight, and the Hessian of correlated inputs with channels of unlike sizes.
struct Problem {
  Problem(int64_t rows, int64_t cols, uint64_t seed) : rng(seed) {
    weight = Normal({rows, cols}, rng);
    const at::Tensor mixing = Normal({cols, cols}, rng) * Normal({cols}, rng).exp();
    const at::Tensor x = at::matmul(Normal({3 * cols, cols}, rng), mixing);
    hessian = at::matmul(x.t(), x);
    grid = MakeWeightGrid(weight, {}, 4);
  }

  Rng rng;
  at::Tensor weight;
  at::Tensor hessian;
  WeightGrid grid;
};

// Optimal brain quantization as it is defined, in a fixed order of columns: with F the
// columns still open and G the inverse of the damped Hessian restricted to F, rounding
// column j changes the others by -(w_j - q_j) G_jk / G_jj.
at::Tensor NaiveCodes(const Problem& problem, const std::vector<int64_t>& order, double damping) {
  const int64_t cols = problem.weight.size(1), rows = problem.weight.size(0);
  const at::Tensor damped =
      problem.hessian + at::eye(cols, at::kDouble) * problem.hessian.diagonal().mean() * damping;
  const at::Tensor weight = problem.weight.clone();
  at::Tensor codes = at::empty({rows, cols}, at::kChar);
  auto w = weight.accessor<double, 2>();
  auto q = codes.accessor<int8_t, 2>();
  for (size_t step = 0; step < order.size(); ++step) {
    const at::Tensor open =
        at::tensor(std::vector<int64_t>(order.begin() + static_cast<int64_t>(step), order.end()));
    const at::Tensor inverse = at::linalg_inv(damped.index_select(0, open).index_select(1, open));
    const auto g = inverse.accessor<double, 2>();
    const int64_t j = order[step];
    for (int64_t row = 0; row < rows; ++row) {
      const double s = static_cast<double>(problem.grid.scale[row][0].item<float>());
      const double code = std::clamp(std::nearbyint(w[row][j] / s), -8.0, 7.0);
      const double error = w[row][j] - s * code;
      q[row][j] = static_cast<int8_t>(code);
      for (int64_t k = 0; k < open.size(0); ++k) {
        w[row][order[step + static_cast<size_t>(k)]] -= error * g[0][k] / g[0][0];
      }
    }
  }
  return codes;
}

std::vector<int64_t> LeftToRight(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

TEST(Gptq, IsOptimalBrainQuantization) {
  for (const int64_t cols : {1, 7, 16, 37}) {
    const Problem problem(5, cols, 40 + static_cast<uint64_t>(cols));
    GptqOptions options;
    options.block_columns = 8;
    const QuantizedWeight result = Gptq(problem.weight, problem.grid, problem.hessian, options, "");
    EXPECT_TRUE(at::equal(result.codes, NaiveCodes(problem, LeftToRight(cols), options.damping)))
        << cols << " columns";
  }
}

TEST(Gptq, ActivationOrderStartsWithTheLargestDiagonal) {
  const Problem problem(4, 23, 3);
  GptqOptions options;
  options.act_order = true;
  std::vector<int64_t> order = LeftToRight(23);
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return problem.hessian[a][a].item<double>() > problem.hessian[b][b].item<double>();
  });
  const QuantizedWeight result = Gptq(problem.weight, problem.grid, problem.hessian, options, "");
  EXPECT_TRUE(at::equal(result.codes, NaiveCodes(problem, order, options.damping)));
}

TEST(Gptq, BlocksDoNotChangeTheResult) {
  const Problem problem(6, 50, 9);
  GptqOptions narrow, wide;
  narrow.block_columns = 3;
  EXPECT_TRUE(at::equal(Gptq(problem.weight, problem.grid, problem.hessian, narrow, "").codes,
                        Gptq(problem.weight, problem.grid, problem.hessian, wide, "").codes));
}

TEST(Gptq, LeavesALowerErrorThanRoundToNearest) {
  for (uint64_t seed = 0; seed < 20; ++seed) {
    const Problem problem(8, 40, seed);
    const double rounded =
        HessianError(problem.weight, RoundToNearest(problem.weight, problem.grid), problem.hessian);
    const double chosen =
        HessianError(problem.weight, Gptq(problem.weight, problem.grid, problem.hessian, {}, ""),
                     problem.hessian);
    EXPECT_LT(chosen, rounded) << "seed " << seed;
  }
}

TEST(Gptq, ColumnsWithoutInputTakeCodeZero) {
  Problem problem(4, 12, 5);
  problem.hessian.select(0, 3).zero_();
  problem.hessian.select(1, 3).zero_();
  const QuantizedWeight result = Gptq(problem.weight, problem.grid, problem.hessian, {}, "");
  EXPECT_EQ(result.codes.select(1, 3).count_nonzero().item<int64_t>(), 0);
  EXPECT_GT(result.codes.select(1, 4).count_nonzero().item<int64_t>(), 0);
}

TEST(Gptq, NamesAHessianThatIsNone) {
  Problem problem(4, 6, 5);
  problem.hessian.diagonal().neg_();
  try {
    Gptq(problem.weight, problem.grid, problem.hessian, {}, "block 3, down_proj");
    ADD_FAILURE() << "a negative Hessian passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "gptq.singular");
    EXPECT_NE(std::string(error.what()).find("block 3, down_proj"), std::string::npos);
  }
}

TEST(ShrinkToLeastError, CutsOffAnOutlierAndNeverLoses) {
  Rng rng(8);
  at::Tensor weight = Normal({6, 64}, rng);
  weight.select(0, 2).select(0, 10).fill_(9.0);
  const WeightGrid plain = MakeWeightGrid(weight, {}, 4);
  const WeightGrid shrunk = ShrinkToLeastError(weight, plain);
  EXPECT_TRUE((shrunk.scale <= plain.scale).all().item<bool>());
  EXPECT_LT(shrunk.scale[2][0].item<float>(), 0.95f * plain.scale[2][0].item<float>());
  const auto error = [&](const WeightGrid& grid) {
    const at::Tensor codes = (weight / grid.scale).round().clamp(SmallestCode(4), LargestCode(4));
    return (weight - codes * grid.scale).abs().pow(2.4).sum(1);
  };
  // Scales are float32: a millionth covers that.
  EXPECT_TRUE((error(shrunk) <= error(plain) * (1 + 1e-6)).all().item<bool>());
}

// On a trained network, with quantized activations: the block's outputs come closer, and
// the stream leaves the block as the quantized block would have it.
TEST(GptqBlock, LowersTheErrorOfABlocksOutputs) {
  const at::Device cpu(at::kCPU);
  const SourceModel model = SourceModel::Open(testing::SourcePath("models/demo-7m"));
  const ModelConfig& config = model.config();
  const BlockWeights weights = LoadBlockWeights(model, 1, cpu);
  const TokenWindows windows = RandomWindows(config, 8, 128, 3);
  at::NoGradGuard no_grad;
  const BlockParameters parameters;
  const BlockTensors folded = Fold(config, weights, parameters, at::kDouble);
  for (const char* name : {"w4a16", "w4a8kv4"}) {
    ResidualStream stream(model, windows, cpu);
    stream.RunBlock(weights, 8);
    const Scheme scheme = Scheme::Parse(name);
    const auto outputs = [&](const QuantizedWeights& quantized) {
      const BlockTensors block = QuantizedForward(folded, quantized, parameters, scheme);
      return BlockForward(config, block, stream.rope(), stream.inputs(), Amp::kOff);
    };
    const auto loss = [&](const at::Tensor& y) {
      return (y - stream.outputs()).square().mean().item<double>();
    };
    const double rounded = loss(outputs(RoundWeights(folded, parameters, scheme)));
    GptqBlockOptions options;
    options.batch = 8;
    const at::Tensor y =
        outputs(GptqBlock(config, folded, parameters, scheme, options, "block 1", &stream));
    EXPECT_LT(loss(y), 0.8 * rounded) << name;
    EXPECT_TRUE(at::equal(y, stream.quantized_inputs())) << name;
  }
}

}  // namespace
}  // namespace flatquant::compress
