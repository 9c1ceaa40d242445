#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "flatquant/compress/ops/amp.h"

namespace flatquant::compress {

// Whether LibTorch has fused attention for these: version 2, operands of 16 bits on a GPU, no
// sliding window.
bool TakesFlashAttention(const at::Tensor& q, int64_t window, Amp amp);

// CausalAttention (attention.h) in 16 bits by LibTorch's fused kernels: no matrix of
// [tokens, tokens] is written, and its logits stay in float. The output is rounded as the operands
// are.
at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Amp amp);

}  // namespace flatquant::compress
