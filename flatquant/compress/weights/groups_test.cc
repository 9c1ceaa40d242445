// A scale per row and group of columns: grids, GPTQ, the packed form, and what it is for.
#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/compress/fake_quant_forward.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/tiny_model_for_test.h"
#include "flatquant/compress/unpack.h"
#include "flatquant/compress/weights/gptq.h"
#include "flatquant/data/lazy_tokenizer.h"

namespace flatquant::compress {
namespace {

at::Tensor Normal(at::IntArrayRef shape, Rng& rng) {
  at::Tensor values = at::empty(shape, at::kDouble);
  for (int64_t i = 0; i < values.numel(); ++i) values.data_ptr<double>()[i] = rng.Normal();
  return values;
}

// Columns of unlike sizes, so that groups have unlike scales.
at::Tensor UnevenWeight(int64_t rows, int64_t cols, Rng& rng) {
  return Normal({rows, cols}, rng) * Normal({cols}, rng).exp();
}

at::Tensor HessianOfCorrelatedInputs(int64_t cols, Rng& rng) {
  const at::Tensor x = at::matmul(Normal({3 * cols, cols}, rng), Normal({cols, cols}, rng));
  return at::matmul(x.t(), x);
}

TEST(Groups, HaveTheGridOfTheirColumns) {
  Rng rng(1);
  const at::Tensor weight = UnevenWeight(5, 23, rng);
  for (const int64_t group_size : {1, 4, 10, 22}) {
    const QuantizedWeight whole = RoundToNearest(weight, MakeWeightGrid(weight, {}, 4, group_size));
    for (int64_t begin = 0, group = 0; begin < 23; begin += group_size, ++group) {
      const int64_t count = std::min(group_size, 23 - begin);
      const at::Tensor part = weight.narrow(1, begin, count);
      const QuantizedWeight alone = RoundToNearest(part, MakeWeightGrid(part, {}, 4));
      EXPECT_TRUE(at::equal(whole.scale.narrow(1, group, 1), alone.scale));
      EXPECT_TRUE(at::equal(whole.codes.narrow(1, begin, count), alone.codes));
      EXPECT_TRUE(at::equal(whole.Values().narrow(1, begin, count), alone.Values()));
    }
  }
}

TEST(Groups, AsWideAsARowAreRows) {
  Rng rng(2);
  const at::Tensor weight = UnevenWeight(3, 12, rng);
  const WeightGrid row = MakeWeightGrid(weight, {}, 4);
  for (const int64_t group_size : {12, 13, 1 << 30}) {
    const WeightGrid grid = MakeWeightGrid(weight, {}, 4, group_size);
    EXPECT_EQ(grid.group_size, 0);
    EXPECT_TRUE(at::equal(grid.scale, row.scale));
  }
}

// GPTQ as gptq_test.cc's naive form has it, one column at a time, each group's grid found
// from the weights as they are when its first column is reached, or in activation order
// from those that came.
QuantizedWeight NaiveGptq(const at::Tensor& weight, const at::Tensor& hessian, int64_t group_size,
                          const std::vector<int64_t>& order, bool is_static, bool mse) {
  const int64_t rows = weight.size(0), cols = weight.size(1);
  const at::Tensor damped =
      hessian + at::eye(cols, at::kDouble) * hessian.diagonal().mean() * GptqOptions().damping;
  const at::Tensor w = weight.clone();
  WeightGrid grid = MakeWeightGrid(weight, {}, 4, group_size);
  if (is_static && mse) grid = ShrinkToLeastError(weight, grid);
  QuantizedWeight result{4, at::empty({rows, cols}, at::kChar), grid.scale.clone(), group_size};
  for (size_t step = 0; step < order.size(); ++step) {
    const int64_t j = order[step], group = j / group_size;
    if (!is_static && j % group_size == 0) {
      const at::Tensor part = w.narrow(1, j, std::min(group_size, cols - j));
      WeightGrid found = MakeWeightGrid(part, {}, 4);
      if (mse) found = ShrinkToLeastError(part, found);
      result.scale.narrow(1, group, 1).copy_(found.scale);
    }
    const at::Tensor open =
        at::tensor(std::vector<int64_t>(order.begin() + static_cast<int64_t>(step), order.end()));
    const at::Tensor inverse = at::linalg_inv(damped.index_select(0, open).index_select(1, open));
    const at::Tensor scale = result.scale.select(1, group).to(at::kDouble);
    const at::Tensor code = (w.select(1, j) / scale).round().clamp(-8, 7);
    const at::Tensor error = w.select(1, j) - scale * code;
    result.codes.select(1, j).copy_(code);
    w.index_add_(1, open, -at::outer(error, inverse.select(0, 0) / inverse[0][0]));
  }
  return result;
}

TEST(Groups, GptqFindsTheirGridsOnItsWay) {
  for (const int64_t cols : {9, 37}) {
    for (const int64_t group_size : {4, 8}) {
      for (const bool mse : {false, true}) {
        Rng rng(static_cast<uint64_t>(cols + group_size));
        const at::Tensor weight = UnevenWeight(5, cols, rng);
        const at::Tensor hessian = HessianOfCorrelatedInputs(cols, rng);
        const WeightGrid grid = MakeWeightGrid(weight, {}, 4, group_size);
        std::vector<int64_t> order(static_cast<size_t>(cols));
        std::iota(order.begin(), order.end(), int64_t{0});
        GptqOptions options;
        options.mse = mse;
        options.block_columns = 6;  // ends inside groups
        const QuantizedWeight result = Gptq(weight, grid, hessian, options, "");
        const QuantizedWeight naive = NaiveGptq(weight, hessian, group_size, order, false, mse);
        EXPECT_TRUE(at::equal(result.codes, naive.codes));
        // Float32 of sums in another order.
        EXPECT_TRUE(at::allclose(result.scale, naive.scale, 1e-6, 0));

        const at::Tensor by_size = at::argsort(hessian.diagonal(), 0, /*descending=*/true);
        for (size_t i = 0; i < order.size(); ++i) {
          order[i] = by_size[static_cast<int64_t>(i)].item<int64_t>();
        }
        options.act_order = true;
        const QuantizedWeight sorted = Gptq(weight, grid, hessian, options, "");
        const QuantizedWeight naive_sorted =
            NaiveGptq(weight, hessian, group_size, order, true, mse);
        EXPECT_TRUE(at::equal(sorted.codes, naive_sorted.codes));
        EXPECT_TRUE(at::equal(sorted.scale, naive_sorted.scale));
      }
    }
  }
}

// What is packed and unpacked again are the chosen values, bit for bit.
TEST(Groups, SurvivePacking) {
  const SourceModel model = SourceModel::Open(WriteTinyModel(TinyLlama(), 1));
  const ModelConfig& config = model.config();
  const BlockWeights weights = LoadBlockWeights(model, 0, at::Device(at::kCPU));
  const BlockParameters parameters;
  at::NoGradGuard no_grad;
  const BlockTensors folded = Fold(config, weights, parameters, at::kDouble);
  for (const char* name : {"w4a16", "w3a4kv4", "w8a8"}) {
    const Scheme scheme = Scheme::Parse(name);
    for (const int64_t group_size : {7, 24, 32}) {  // widths are 24, 32 and 44
      const QuantizedWeights codes = RoundWeights(folded, parameters, scheme, group_size);
      const BlockTensors block =
          Unpack(config, PackBlock(folded, weights, codes, parameters, scheme));
      for (size_t i = 0; i < kLinears.size(); ++i) {
        EXPECT_EQ(codes[i].group_size > 0, ShapeOf(config, kLinears[i]).cols > group_size);
        EXPECT_TRUE(at::equal(block.weights[i], codes[i].Values()));
      }
    }
  }
}

class GroupOptions : public ::testing::Test {
 protected:
  GroupOptions() : model_(SourceModel::Open(WriteTinyModel(TinyLlama(), 1))) {
    options_.method = "rtn";
    options_.group_size = 10;
    options_.batch = 2;
    options_.threads = 1;
  }

  SourceModel model_;
  QuantizeOptions options_;
};

TEST_F(GroupOptions, ReachEveryLinear) {
  const TokenWindows windows = RandomWindows(model_.config(), 4, 16, 2);
  for (const auto weights : {QuantizeOptions::Weights::kRtn, QuantizeOptions::Weights::kGptq}) {
    options_.weights = weights;
    const PackedModel packed = Quantize(model_, options_, windows, nullptr);
    for (const PackedBlock& block : packed.blocks) {
      for (const PackedLinear& linear : block.linears) EXPECT_EQ(linear.group_size, 10);
    }
  }
  options_.group_size = 44;
  EXPECT_FALSE(Quantize(model_, options_, windows, nullptr).blocks[0].linears[0].is_grouped());
}

TEST_F(GroupOptions, AreRefusedWhereScalesAreOthers) {
  const TokenWindows windows = RandomWindows(model_.config(), 4, 16, 2);
  const auto error = [&] {
    return testing::ErrorName([&] { Quantize(model_, options_, windows, nullptr); });
  };
  options_.weights = QuantizeOptions::Weights::kLearned;
  EXPECT_EQ(error(), "quantize.bad_option");
  options_.weights = QuantizeOptions::Weights::kRtn;
  options_.method = "flattenquant";
  EXPECT_EQ(error(), "quantize.bad_option");
}

// On a trained network, likelihoods come closer to its own the smaller the groups are.
TEST(Groups, ImproveATrainedNetwork) {
  const std::string folder = testing::SourcePath("models/demo-7m").string();
  const SourceModel model = SourceModel::Open(folder);
  const LazyTokenizer tokenizer(folder);
  const auto text = [&](const char* name, int64_t count) {
    return CalibrationWindows(DataSpec::Parse("jsonl:" + folder + "/" + name), tokenizer, 256,
                              count, 1, model.config().vocab);
  };
  const TokenWindows evaluation = text("selfgen-eval.jsonl", 4);
  const TokenWindows calibration = text("selfgen-calib.jsonl", 4);
  QuantizeOptions options;
  options.method = "rtn";
  options.scheme = Scheme::Parse("w4a16");
  for (const auto weights : {QuantizeOptions::Weights::kRtn, QuantizeOptions::Weights::kGptq}) {
    options.weights = weights;
    double last = 0;
    for (const int64_t group_size : {0, 128, 32}) {
      options.group_size = group_size;
      const std::vector<float> nll =
          FakeQuantTokenNll(Quantize(model, options, calibration, nullptr), evaluation);
      const double mean =
          std::accumulate(nll.begin(), nll.end(), 0.0) / static_cast<double>(nll.size());
      if (group_size > 0) {
        EXPECT_LT(mean, last) << group_size;
      }
      last = mean;
    }
  }
}

}  // namespace
}  // namespace flatquant::compress
