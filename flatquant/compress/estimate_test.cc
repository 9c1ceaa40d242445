#include "flatquant/compress/estimate.h"

#include <gtest/gtest.h>

#include "flatquant/compress/tiny_model_for_test.h"
#include "flatquant/model/named_shapes.h"
#include "flatquant/packed/sizes.h"

namespace flatquant {
namespace {

QuantizeOptions Options() {
  QuantizeOptions options;
  options.threads = 1;
  return options;
}

TEST(EstimateTest, CountsTrainingOfSevenBillionWeights) {
  const ModelConfig config = NamedShape("llama-2-7b");
  const WorkEstimate work = EstimateWork(config, Options(), 8);
  EXPECT_EQ(work.blocks, 32);
  // 6.48e9 weights in linears; 15 epochs of three passes, one pass before them and two
  // over 8 of 128 windows, 2 flops per weight and token, and attention and transforms.
  const double linears = 6.48e9 * 2 * 128 * 2048 * (15 * 3 + 1 + 2 * 8.0 / 128);
  const double flops = static_cast<double>(work.blocks) * work.block.matmul_flops;
  EXPECT_GT(flops, linears);
  EXPECT_LT(flops, 1.3 * linears);
  // 3.24 GB of nibbles, 0.26 GB of embedding, 0.13 GB of lm_head, and scales.
  EXPECT_NEAR(static_cast<double>(work.output_disk_bytes), 3.65e9, 0.1e9);
  // Two copies of 128 x 2048 x 4096 floats.
  EXPECT_NEAR(static_cast<double>(work.stream_bytes), 8.6e9, 0.1e9);
}

TEST(EstimateTest, WhatARunDoesMoreCostsMore) {
  const ModelConfig config = NamedShape("tinyllama-1.1b");
  const WorkEstimate base = EstimateWork(config, Options(), 8);
  QuantizeOptions more = Options();
  more.epochs *= 2;
  EXPECT_NEAR(EstimateWork(config, more, 8).block.matmul_flops / base.block.matmul_flops, 2, 0.1);
  more = Options();
  more.restarts = 3;
  EXPECT_NEAR(EstimateWork(config, more, 8).block.matmul_flops / base.block.matmul_flops, 3, 0.1);
  EXPECT_EQ(EstimateWork(config, more, 8).memory_bytes, base.memory_bytes);
  more = Options();
  more.stream = QuantizeOptions::Stream::kQuantized;
  const WorkEstimate in_order = EstimateWork(config, more, 8);
  EXPECT_EQ(in_order.stream_bytes * 2, base.stream_bytes * 3);
  EXPECT_GT(in_order.block.matmul_flops, base.block.matmul_flops);
  EXPECT_GT(in_order.job_disk_bytes, base.job_disk_bytes);
  more = Options();
  more.method = "rtn";
  const WorkEstimate rtn = EstimateWork(config, more, 8);
  EXPECT_EQ(rtn.block.matmul_flops, 0);
  EXPECT_EQ(rtn.stream_bytes, 0u);
  more.weights = QuantizeOptions::Weights::kGptq;
  EXPECT_GT(EstimateWork(config, more, 8).block.double_flops, rtn.block.double_flops);
}

TEST(EstimateTest, BlocksTakeTheBytesThatTheyTake) {
  const ModelConfig config = compress::TinyLlama();
  const SourceModel model = SourceModel::Open(compress::WriteTinyModel(config, 1));
  QuantizeOptions options = Options();
  options.epochs = 0;
  const PackedModel packed =
      Quantize(model, options, compress::RandomWindows(config, 2, 8, 2), nullptr);
  const auto norms = static_cast<uint64_t>(config.layers * 2 * config.hidden) * 4;
  const auto actual = static_cast<double>(SizesOf(packed).linear_bytes + norms);
  const auto estimated = static_cast<double>(EstimateWork(config, options, 16).job_disk_bytes);
  EXPECT_NEAR(estimated, actual, 0.02 * actual);
}

TEST(EstimateTest, MeasuresThisMachine) {
  const ModelConfig config = compress::TinyLlama();
  QuantizeOptions options = Options();
  options.seqlen = 64;
  const MachineRates rates = MeasureRates(config, options);
  // Any machine that can run this does a million a second and no thousand trillions.
  for (const double rate : {rates.matmul_flops, rates.double_flops, rates.streamed_bytes}) {
    EXPECT_GT(rate, 1e6);
    EXPECT_LT(rate, 1e18);
  }
  EXPECT_GT(EstimateTime(EstimateWork(config, options, 8), rates).calibration_seconds, 0);
}

}  // namespace
}  // namespace flatquant
