#include "flatquant/compress/equivalence.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "flatquant/base/rng.h"

namespace flatquant::compress {
namespace {

BlockTensors Converted(BlockTensors block, at::ScalarType through, at::ScalarType type) {
  const auto convert = [=](at::Tensor* tensor) {
    if (tensor->defined()) *tensor = tensor->to(through).to(type);
  };
  for (at::Tensor* tensor : {&block.input_norm, &block.post_attention_norm, &block.q_norm,
                             &block.k_norm, &block.k_transform, &block.q_transform}) {
    convert(tensor);
  }
  for (at::Tensor& tensor : block.weights) convert(&tensor);
  for (at::Tensor& tensor : block.biases) convert(&tensor);
  for (BlockTensors::SiteTensors& site : block.sites) {
    convert(&site.left);
    convert(&site.right);
  }
  return block;
}

}  // namespace

double SelfTestError(const ModelConfig& config, const BlockWeights& weights,
                     const BlockTensors& folded, const at::Tensor& x) {
  at::NoGradGuard no_grad;
  const at::Tensor input = x.to(at::kDouble);
  const RopeTables rope = MakeRopeTables(config, x.size(1), at::kDouble, x.device());
  const BlockTensors original = Converted(FullPrecision(weights), at::kDouble, at::kDouble);
  const BlockTensors rounded = Converted(folded, at::kFloat, at::kDouble);
  const at::Tensor expected = BlockForward(config, original, rope, input, Amp::kOff);
  const at::Tensor actual = BlockForward(config, rounded, rope, input, Amp::kOff);
  const at::Tensor size = (expected - input).square().sum(-1).mean().sqrt();
  const at::Tensor error = (actual - expected).square().sum(-1).amax().sqrt();
  const double tiny = 1e-30;  // a block that adds nothing
  return (error / size.clamp_min(tiny)).item<double>();
}

at::Tensor RandomBlockInput(int64_t tokens, int64_t hidden, uint64_t seed, at::Device device) {
  Rng rng(seed);
  at::Tensor x = at::empty({1, tokens, hidden}, at::kFloat);
  float* values = x.data_ptr<float>();
  for (int64_t i = 0; i < x.numel(); ++i) values[i] = static_cast<float>(rng.Normal());
  return x.to(device);
}

}  // namespace flatquant::compress
