#include "flatquant/compress/block_weights.h"

#include "flatquant/compress/tensor_bridge.h"

namespace flatquant::compress {

BlockWeights LoadBlockWeights(const SourceModel& model, int64_t layer, at::Device device) {
  const auto load = [device](const Tensor& tensor) { return ToTorch(tensor, at::kFloat, device); };
  BlockWeights block;
  block.input_norm = load(model.NormWeight(layer, Norm::kInput));
  block.post_attention_norm = load(model.NormWeight(layer, Norm::kPostAttention));
  if (model.config().qk_norm) {
    block.q_norm = load(model.NormWeight(layer, Norm::kQ));
    block.k_norm = load(model.NormWeight(layer, Norm::kK));
  }
  for (const Linear which : kLinears) {
    const size_t i = static_cast<size_t>(which);
    const Tensor weight = model.Weight(layer, which);
    block.weights[i] = load(weight);
    block.dtypes[i] = weight.dtype;
    block.biases[i] = load(model.Bias(layer, which));
  }
  return block;
}

}  // namespace flatquant::compress
