#include "flatquant/compress/fold.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/ops/fake_quant.h"
#include "flatquant/compress/ops/kron.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

at::Tensor Cast(const at::Tensor& tensor, at::ScalarType type) {
  return tensor.defined() ? tensor.to(type) : tensor;
}

// The linears of a site take W <- (W / d) (left^-T (x) right^-T), row by row.
at::Tensor TakeUp(const at::Tensor& weight, const at::Tensor& diagonal, const at::Tensor& left,
                  const at::Tensor& right) {
  const at::Tensor scaled = diagonal.defined() ? weight / diagonal : weight;
  return left.defined() || right.defined() ? KronTransform(scaled, left, right) : scaled;
}

// v' = v P per KV head: the rows of W_v and its bias are mixed by P^T.
at::Tensor MixHeadRows(const at::Tensor& rows, const at::Tensor& matrix) {
  const at::Tensor heads = rows.reshape({-1, matrix.size(0), rows.numel() / rows.size(0)});
  return at::matmul(matrix.t(), heads).reshape(rows.sizes());
}

Tensor PackFloats(const at::Tensor& tensor) {
  return tensor.defined() ? FromTorch(tensor.to(at::kFloat)) : Tensor();
}

// A weight that is not quantized, in the source's element type; that of FORMAT.md's
// three floating types which holds it where the source's does not.
Tensor PackUnquantized(const at::Tensor& weight, DType source) {
  constexpr double kLargestHalf = 65504;
  const bool fits = source != DType::kF16 || weight.abs().max().item<double>() <= kLargestHalf;
  const DType type = source == DType::kF64 || !fits ? DType::kF32 : source;
  return FromTorch(weight.to(ScalarTypeOf(type)));
}

PackedLinear PackLinear(const QuantizedWeight& weight) {
  PackedLinear packed;
  packed.bits = weight.bits;
  const at::Tensor codes = weight.codes.to(at::kCPU).contiguous();
  packed.weight = PackCodes(weight.bits, codes.size(0), codes.size(1), codes.data_ptr<int8_t>());
  packed.group_size = weight.group_size;
  packed.scale = PackFloats(weight.group_size > 0 ? weight.scale : weight.scale.squeeze(1));
  return packed;
}

void PackColumns(const ColumnMap& columns, PackedSite* site) {
  site->act_scale = Tensor::Floats({1}, {columns.scale});
  const ColumnMap here = columns.To(at::kCPU);
  const auto channel = here.channel.accessor<int64_t, 1>();
  const auto piece = here.piece.accessor<int64_t, 1>();
  std::vector<ExtraColumn> extra;
  for (int64_t c = here.width; c < here.channel.size(0); ++c) {
    extra.push_back({static_cast<int32_t>(channel[c]), static_cast<int32_t>(piece[c])});
  }
  site->extra_columns = PackExtraColumns(extra);
}

// The step is a constant of the gradient: a correction moves codes, and the scale
// follows from the corrected weight.
at::Tensor Corrected(const at::Tensor& weight, const at::Tensor& correction, int bits) {
  if (!correction.defined()) return weight;
  const at::Tensor step = weight.detach().abs().amax(1, true) / LargestCode(bits);
  return at::addcmul(weight, correction.to(weight.scalar_type()), step);
}

float Factor(const at::Tensor& logit) {
  return logit.defined() ? logit.detach().to(at::kDouble).sigmoid().item<float>() : 1.0f;
}

Clip Factors(const ClipLogits& clip) { return {Factor(clip.max), Factor(clip.min)}; }

// The scheme's quantizers of activations, K and V.
BlockTensors WithActivationGrids(BlockTensors folded, const BlockParameters& parameters,
                                 const Scheme& scheme) {
  for (const Site site : kSites) {
    folded.site(site).act_bits = parameters.act_bits(site, scheme);
    folded.site(site).clips = parameters.site(site).act_clips;
  }
  folded.k_bits = scheme.k_bits;
  folded.v_bits = scheme.v_bits;
  folded.k_clip = parameters.k_clip;
  folded.v_clip = parameters.v_clip;
  return folded;
}

// Cuts the weights of a flattened site, which is folded otherwise, into its columns.
void Flatten(Site site, const SiteFlattening& flattening, BlockTensors* block) {
  const at::Tensor& any = block->weights[static_cast<size_t>(LinearsOf(site)[0])];
  const at::Device device = any.device();
  block->site(site).columns = MakeColumnMap(flattening.bits, flattening.act_scale, any.size(1),
                                            flattening.channel, flattening.piece)
                                  .To(device);
  size_t index = 0;
  for (const Linear which : LinearsOf(site)) {
    at::Tensor& weight = block->weights[static_cast<size_t>(which)];
    if (flattening.weight_scales.empty()) {
      weight = weight.index_select(1, flattening.channel.to(weight.device()));
      continue;
    }
    const double threshold =
        static_cast<double>(flattening.weight_scales.at(index++)) * LargestCode(flattening.bits);
    weight = SplitWeight(weight, flattening.channel.to(device), flattening.weight_piece.to(device),
                         flattening.weight_pieces.to(device), threshold);
  }
}

}  // namespace

BlockTensors Fold(const ModelConfig& config, const BlockWeights& weights,
                  const BlockParameters& parameters, at::ScalarType type) {
  BlockTensors block;
  block.input_norm = Cast(weights.input_norm, type);
  block.post_attention_norm = Cast(weights.post_attention_norm, type);
  block.q_norm = Cast(weights.q_norm, type);
  block.k_norm = Cast(weights.k_norm, type);
  for (size_t i = 0; i < kLinears.size(); ++i) {
    block.weights[i] = Cast(weights.weights[i], type);
    block.biases[i] = Cast(weights.biases[i], type);
  }

  std::vector<const InvertibleMatrix*> matrices = {&parameters.key, &parameters.value};
  for (const BlockParameters::SiteParameters& site : parameters.sites) {
    matrices.push_back(&site.left);
    matrices.push_back(&site.right);
  }
  const std::vector<MatrixPair> pairs = InvertibleMatrix::EvaluateAll(matrices, type);
  const MatrixPair& key = pairs[0];
  const MatrixPair& value = pairs[1];
  block.k_transform = key.matrix;
  block.q_transform = key.inverse_transpose;

  if (value.matrix.defined()) {
    FLATQUANT_CHECK(value.matrix.size(0) == config.head_dim);
    at::Tensor& v = block.weights[static_cast<size_t>(Linear::kV)];
    at::Tensor& bias = block.biases[static_cast<size_t>(Linear::kV)];
    v = MixHeadRows(v, value.matrix);
    if (bias.defined()) bias = MixHeadRows(bias, value.matrix);
  }

  for (const Site site : kSites) {
    const BlockParameters::SiteParameters& chosen = parameters.site(site);
    const MatrixPair& left = pairs[2 + 2 * static_cast<size_t>(site)];
    const MatrixPair& right = pairs[3 + 2 * static_cast<size_t>(site)];
    block.site(site).left = left.matrix;
    block.site(site).right = right.matrix;
    const bool folds_value = site == Site::kAttnOut && value.matrix.defined();
    const at::Tensor right_inverse =
        folds_value ? value.inverse_transpose : right.inverse_transpose;
    FLATQUANT_CHECK(site != Site::kAttnOut ||
                    (chosen.right.is_identity() && !chosen.diagonal.defined()));

    const at::Tensor diagonal = Cast(chosen.diagonal, type);
    for (const Linear which : LinearsOf(site)) {
      at::Tensor& weight = block.weights[static_cast<size_t>(which)];
      weight = TakeUp(weight, diagonal, left.inverse_transpose, right_inverse);
    }
    if (!diagonal.defined()) continue;
    if (site == Site::kAttnIn) {
      block.input_norm = block.input_norm * diagonal;
    } else if (site == Site::kMlpIn) {
      block.post_attention_norm = block.post_attention_norm * diagonal;
    } else {
      // silu(gate) * up is linear in up, so that up's rows can carry it.
      at::Tensor& up = block.weights[static_cast<size_t>(Linear::kUp)];
      at::Tensor& bias = block.biases[static_cast<size_t>(Linear::kUp)];
      up = up * diagonal.unsqueeze(1);
      if (bias.defined()) bias = bias * diagonal;
    }
  }
  // Last, because the diagonal of a later site may lie in the rows of these weights.
  for (const Site site : kSites) {
    const SiteFlattening& flattening = parameters.site(site).flattening;
    if (flattening.defined()) Flatten(site, flattening, &block);
  }
  return block;
}

BlockTensors Quantized(BlockTensors folded, const BlockParameters& parameters, const Scheme& scheme,
                       at::ScalarType weight_type) {
  if (scheme.weight_bits < 16) {
    for (size_t i = 0; i < kLinears.size(); ++i) {
      FLATQUANT_CHECK(!parameters.site(SiteOf(kLinears[i])).flattening.defined());
      const ClipLogits& clip = parameters.weight_clips[i];
      const at::Tensor weight =
          Corrected(folded.weights[i], parameters.weight_corrections[i], scheme.weight_bits);
      folded.weights[i] =
          FakeQuantWeight(weight, clip.max, clip.min, scheme.weight_bits, weight_type);
    }
  }
  return WithActivationGrids(std::move(folded), parameters, scheme);
}

WeightGrid WeightGridOf(const at::Tensor& weight, const BlockParameters& parameters, Linear which,
                        const Scheme& scheme, int64_t group_size) {
  const size_t i = static_cast<size_t>(which);
  const SiteFlattening& flattening = parameters.site(SiteOf(which)).flattening;
  if (!flattening.defined()) {
    return MakeWeightGrid(weight, parameters.weight_clips[i], scheme.weight_bits, group_size);
  }
  if (flattening.weight_scales.empty()) return MakeWeightGrid(weight, {}, flattening.bits);
  const auto linears = LinearsOf(SiteOf(which));
  const auto index = std::find(linears.begin(), linears.end(), which) - linears.begin();
  const float scale = flattening.weight_scales.at(static_cast<size_t>(index));
  WeightGrid grid;
  grid.bits = flattening.bits;
  grid.scale = at::full({weight.size(0), 1}, scale, weight.options().dtype(at::kFloat));
  grid.high = grid.scale.to(weight.scalar_type()) * LargestCode(grid.bits);
  grid.low = -grid.high;
  return grid;
}

QuantizedWeights RoundWeights(const BlockTensors& folded, const BlockParameters& parameters,
                              const Scheme& scheme, int64_t group_size) {
  QuantizedWeights quantized;
  for (size_t i = 0; i < kLinears.size(); ++i) {
    const at::Tensor weight =
        Corrected(folded.weights[i], parameters.weight_corrections[i], scheme.weight_bits);
    quantized[i] =
        RoundToNearest(weight, WeightGridOf(weight, parameters, kLinears[i], scheme, group_size));
  }
  return quantized;
}

BlockTensors FloatForward(const BlockTensors& folded, const BlockParameters& parameters,
                          const Scheme& scheme) {
  BlockTensors block = WithActivationGrids(folded, parameters, scheme);
  for (at::Tensor* tensor : {&block.input_norm, &block.post_attention_norm, &block.q_norm,
                             &block.k_norm, &block.k_transform, &block.q_transform}) {
    *tensor = Cast(*tensor, at::kFloat);
  }
  for (at::Tensor& weight : block.weights) weight = Cast(weight, at::kFloat);
  for (at::Tensor& bias : block.biases) bias = Cast(bias, at::kFloat);
  for (BlockTensors::SiteTensors& site : block.sites) {
    site.left = Cast(site.left, at::kFloat);
    site.right = Cast(site.right, at::kFloat);
  }
  return block;
}

BlockTensors QuantizedForward(const BlockTensors& folded, const QuantizedWeights& quantized,
                              const BlockParameters& parameters, const Scheme& scheme) {
  BlockTensors block = FloatForward(folded, parameters, scheme);
  if (scheme.weight_bits >= 16) return block;
  for (size_t i = 0; i < kLinears.size(); ++i) block.weights[i] = quantized[i].Values();
  return block;
}

PackedBlock PackBlock(const BlockTensors& folded, const BlockWeights& weights,
                      const QuantizedWeights& quantized, const BlockParameters& parameters,
                      const Scheme& scheme) {
  PackedBlock packed;
  packed.input_norm = PackFloats(folded.input_norm);
  packed.post_attention_norm = PackFloats(folded.post_attention_norm);
  packed.q_norm = PackFloats(folded.q_norm);
  packed.k_norm = PackFloats(folded.k_norm);
  for (size_t i = 0; i < kLinears.size(); ++i) {
    PackedLinear& linear = packed.linears[i];
    if (scheme.weight_bits < 16) {
      linear = PackLinear(quantized[i]);
    } else {
      linear.weight = PackUnquantized(folded.weights[i], weights.dtypes[i]);
    }
    linear.bias = PackFloats(folded.biases[i]);
  }
  for (const Site which : kSites) {
    PackedSite& site = packed.site(which);
    site.left = PackFloats(folded.site(which).left);
    site.right = PackFloats(folded.site(which).right);
    site.act_bits = parameters.act_bits(which, scheme);
    site.clips.clear();
    const ColumnMap& columns = folded.site(which).columns;
    if (columns.defined()) PackColumns(columns, &site);
    for (const ClipLogits& clip : parameters.site(which).act_clips) {
      site.clips.push_back(Factors(clip));
    }
  }
  packed.cache.k_bits = scheme.k_bits;
  packed.cache.v_bits = scheme.v_bits;
  packed.cache.k_clip = Factors(parameters.k_clip);
  packed.cache.v_clip = Factors(parameters.v_clip);
  packed.cache.k_transform = PackFloats(folded.k_transform);
  packed.cache.q_transform = PackFloats(folded.q_transform);
  return packed;
}

}  // namespace flatquant::compress
