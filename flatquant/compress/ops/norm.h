#pragma once

#include <ATen/core/Tensor.h>

namespace flatquant::compress {

// y = x / sqrt(mean(x^2) + eps) * weight over the last dimension.
// x: [..., n]; weight: [n], or undefined for all ones (the diagonal folded away).
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);

// y = silu(gate) * up, elementwise; silu(a) = a / (1 + exp(-a)).
at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up);

// Rotary position embedding in the rotate-half layout: with x = [a, b] split in
// the middle of head_dim, y = [a cos - b sin, b cos + a sin].
// x: [batch, tokens, heads, head_dim]; cos, sin: [tokens, head_dim / 2], which
// get no gradient.
at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);

}  // namespace flatquant::compress
