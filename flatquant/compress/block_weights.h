#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "flatquant/model/source_model.h"

namespace flatquant::compress {

// The original weights of one decoder block, float32 on one device (exact for
// bf16, f16 and f32 sources).
struct BlockWeights {
  at::Tensor input_norm;              // [hidden]
  at::Tensor post_attention_norm;     // [hidden]
  at::Tensor q_norm;                  // [head_dim], undefined without qk_norm
  at::Tensor k_norm;                  // [head_dim]
  std::array<at::Tensor, 7> weights;  // [rows, cols], indexed by Linear
  std::array<at::Tensor, 7> biases;   // [rows], undefined without
  std::array<DType, 7> dtypes;        // of the source's weights

  const at::Tensor& weight(Linear which) const { return weights[static_cast<size_t>(which)]; }
  const at::Tensor& bias(Linear which) const { return biases[static_cast<size_t>(which)]; }
};

BlockWeights LoadBlockWeights(const SourceModel& model, int64_t layer, at::Device device);

}  // namespace flatquant::compress
