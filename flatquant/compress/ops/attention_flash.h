#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

namespace flatquant::compress {

// Whether LibTorch has fused attention for these: version 2, bfloat16 operands on a GPU, no
// sliding window.
bool TakesFlashAttention(const at::Tensor& q, int64_t window, bool amp);

// CausalAttention (attention.h) in bfloat16 by LibTorch's fused kernels: no matrix of
// [tokens, tokens] is written, and its logits stay in float. The output is rounded to bfloat16.
at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v);

}  // namespace flatquant::compress
