#include "flatquant/runtime/plain_model.h"

namespace flatquant {
namespace {

Tensor AsFloats(const Tensor& tensor) {
  if (!tensor.defined()) return {};
  return Tensor::Floats(tensor.shape, tensor.ToFloat());
}

}  // namespace

PackedModel PlainModel(const SourceModel& source) {
  PackedModel model;
  model.config = source.config();
  model.scheme = {16, 16, 16, 16};
  for (int64_t layer = 0; layer < model.config.layers; ++layer) {
    PackedBlock& block = model.blocks.emplace_back();
    block.input_norm = AsFloats(source.NormWeight(layer, Norm::kInput));
    block.post_attention_norm = AsFloats(source.NormWeight(layer, Norm::kPostAttention));
    if (model.config.qk_norm) {
      block.q_norm = AsFloats(source.NormWeight(layer, Norm::kQ));
      block.k_norm = AsFloats(source.NormWeight(layer, Norm::kK));
    }
    for (Linear which : kLinears) {
      block.linear(which).weight = source.Weight(layer, which);
      block.linear(which).bias = AsFloats(source.Bias(layer, which));
    }
  }
  model.embedding = source.Embedding();
  model.final_norm = AsFloats(source.FinalNorm());
  if (!model.config.tied_embeddings) model.lm_head = source.LmHead();
  return model;
}

}  // namespace flatquant
