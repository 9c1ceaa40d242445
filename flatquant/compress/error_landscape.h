#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "flatquant/compress/block_forward.h"
#include "flatquant/model/config.h"

namespace flatquant::compress {

// Windows on their way through a quantized network, beside the original one, and how far
// they have drifted from it: each block takes what the quantized blocks before it made,
// so that errors add up, or are forgotten, as they do when the model is used.
class QuantizedPath {
 public:
  // inputs: what enters the first block of both networks, [windows, tokens, hidden].
  explicit QuantizedPath(const at::Tensor& inputs) : activations_(inputs.clone()) {}

  // Runs the next block, `batch` windows at a time. original: what the original block
  // put out, of the inputs' shape. Returns the mean squared error of each token
  // position, over windows and channels: [tokens].
  std::vector<float> Advance(const ModelConfig& config, const BlockTensors& quantized,
                             const RopeTables& rope, const at::Tensor& original, int64_t batch);

 private:
  at::Tensor activations_;
};

}  // namespace flatquant::compress
