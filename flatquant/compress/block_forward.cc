#include "flatquant/compress/block_forward.h"

#include <ATen/ATen.h>

#include <span>

#include "flatquant/base/error.h"
#include "flatquant/compress/ops/attention.h"
#include "flatquant/compress/ops/fake_quant.h"
#include "flatquant/compress/ops/kron.h"
#include "flatquant/compress/ops/linear.h"
#include "flatquant/compress/ops/norm.h"

namespace flatquant::compress {
namespace {

at::Tensor Transformed(const BlockTensors::SiteTensors& site, const at::Tensor& x) {
  const bool identity = !site.left.defined() && !site.right.defined();
  return identity ? x : KronTransform(x, site.left, site.right);
}

at::Tensor QuantizedInput(const BlockTensors::SiteTensors& site, const ClipLogits& clip,
                          const at::Tensor& transformed, at::ScalarType type) {
  if (site.columns.defined()) {
    return site.act_bits >= 16 ? SplitChannels(transformed, site.columns)
                               : QuantizeColumns(transformed, site.columns, type);
  }
  if (site.act_bits >= 16) return transformed;
  return FakeQuantActivation(transformed, clip.max, clip.min, site.act_bits, type);
}

// The online half of a site and its linears: transform, quantize, multiply.
std::vector<at::Tensor> SiteForward(const BlockTensors& block, Site site, const at::Tensor& x,
                                    Amp amp, const SiteObserver& observer) {
  if (observer) observer(site, x);
  const BlockTensors::SiteTensors& tensors = block.site(site);
  const at::Tensor transformed = Transformed(tensors, x);
  const at::ScalarType quantized_type = OperandType(amp, x.scalar_type());
  const auto quantize = [&](const ClipLogits& clip) {
    return QuantizedInput(tensors, clip, transformed, quantized_type);
  };

  std::vector<at::Tensor> weights, biases;
  for (const Linear which : LinearsOf(site)) {
    weights.push_back(block.weights[static_cast<size_t>(which)]);
    biases.push_back(block.biases[static_cast<size_t>(which)]);
  }
  if (tensors.clips.size() == 1) {
    return LinearGroup(quantize(tensors.clips[0]), weights, biases, amp);
  }
  FLATQUANT_CHECK(tensors.clips.size() == weights.size());
  std::vector<at::Tensor> results;
  for (size_t i = 0; i < weights.size(); ++i) {
    results.push_back(LinearOp(quantize(tensors.clips[i]), weights[i], biases[i], amp));
  }
  return results;
}

at::Tensor Attention(const ModelConfig& config, const BlockTensors& block, const RopeTables& rope,
                     const std::vector<at::Tensor>& qkv, Amp amp) {
  const int64_t batch = qkv[0].size(0), tokens = qkv[0].size(1);
  at::Tensor q = qkv[0].view({batch, tokens, config.heads, config.head_dim});
  at::Tensor k = qkv[1].view({batch, tokens, config.kv_heads, config.head_dim});
  at::Tensor v = qkv[2].view({batch, tokens, config.kv_heads, config.head_dim});
  if (block.q_norm.defined()) q = RmsNorm(q, block.q_norm, config.rms_eps);
  if (block.k_norm.defined()) k = RmsNorm(k, block.k_norm, config.rms_eps);
  const at::Tensor cos = rope.cos.narrow(0, 0, tokens);
  const at::Tensor sin = rope.sin.narrow(0, 0, tokens);
  q = Rope(q, cos, sin);
  k = Rope(k, cos, sin);
  if (block.q_transform.defined()) q = KronTransform(q, {}, block.q_transform);
  if (block.k_transform.defined()) k = KronTransform(k, {}, block.k_transform);
  if (block.k_bits < 16) {
    k = FakeQuantKv(k, block.k_clip.max, block.k_clip.min, block.k_bits, k.scalar_type());
  }
  if (block.v_bits < 16) {
    v = FakeQuantKv(v, block.v_clip.max, block.v_clip.min, block.v_bits, v.scalar_type());
  }
  return CausalAttention(q, k, v, config.sliding_window.value_or(0), amp);
}

}  // namespace

at::Tensor SiteInput(const BlockTensors::SiteTensors& site, const ClipLogits& clip,
                     const at::Tensor& x, at::ScalarType type) {
  return QuantizedInput(site, clip, Transformed(site, x), type);
}

BlockTensors FullPrecision(const BlockWeights& weights) {
  BlockTensors block;
  block.input_norm = weights.input_norm;
  block.post_attention_norm = weights.post_attention_norm;
  block.q_norm = weights.q_norm;
  block.k_norm = weights.k_norm;
  block.weights = weights.weights;
  block.biases = weights.biases;
  return block;
}

RopeTables MakeRopeTables(const ModelConfig& config, int64_t tokens, at::ScalarType type,
                          at::Device device) {
  std::vector<double> frequencies = RopeFrequencies(config.rope, config.head_dim);
  const int64_t half = static_cast<int64_t>(frequencies.size());
  const at::Tensor frequency = at::from_blob(frequencies.data(), {1, half}, at::kDouble);
  const at::Tensor position = at::arange(tokens, at::kDouble).unsqueeze(1);
  const at::Tensor angle = position * frequency;
  return {angle.cos().to(type).to(device), angle.sin().to(type).to(device)};
}

at::Tensor SiteActivation(const ModelConfig& config, const BlockTensors& block,
                          const RopeTables& rope, const at::Tensor& x, Site site, Amp amp,
                          const SiteObserver& observer) {
  switch (site) {
    case Site::kAttnIn:
      return RmsNorm(x, block.input_norm, config.rms_eps);
    case Site::kAttnOut: {
      const at::Tensor attn_in = RmsNorm(x, block.input_norm, config.rms_eps);
      const auto qkv = SiteForward(block, Site::kAttnIn, attn_in, amp, observer);
      return Attention(config, block, rope, qkv, amp);
    }
    case Site::kMlpIn:
      return RmsNorm(x, block.post_attention_norm, config.rms_eps);
    case Site::kMlpOut:
      break;
  }
  const at::Tensor mlp_in = RmsNorm(x, block.post_attention_norm, config.rms_eps);
  const auto gate_up = SiteForward(block, Site::kMlpIn, mlp_in, amp, observer);
  return Swiglu(gate_up[0], gate_up[1]);
}

at::Tensor HalfForward(const ModelConfig& config, const BlockTensors& block, const RopeTables& rope,
                       const at::Tensor& x, BlockHalf half, Amp amp, const SiteObserver& observer) {
  const Site last = half == BlockHalf::kAttention ? Site::kAttnOut : Site::kMlpOut;
  const at::Tensor activation = SiteActivation(config, block, rope, x, last, amp, observer);
  return x + SiteForward(block, last, activation, amp, observer)[0];
}

at::Tensor BlockForward(const ModelConfig& config, const BlockTensors& block,
                        const RopeTables& rope, const at::Tensor& x, Amp amp,
                        const SiteObserver& observer) {
  const at::Tensor middle =
      HalfForward(config, block, rope, x, BlockHalf::kAttention, amp, observer);
  return HalfForward(config, block, rope, middle, BlockHalf::kMlp, amp, observer);
}

}  // namespace flatquant::compress
