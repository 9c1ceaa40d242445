#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

// Quantize-dequantize with straight-through gradients.
//
// Rounding is half to even and has gradient 1; a clamp passes gradient only to
// what it leaves alone; the scale carries gradient to the clip logits and to
// the elements that attain a row's maximum and minimum (the first of equal
// ones). The zero point carries none. With u = round(x/s), q = clamp(u):
//
//   dy/dx = 1 inside the grid, 0 outside      dy/ds = q - x/s inside, q outside
//
// An undefined clip logit means no clipping (a factor of 1). bits = 16 changes
// nothing. Every function is differentiable, deterministic for a fixed thread
// count, and works on any device and floating dtype; float tensors on the CPU
// take a fused path that saves only its inputs.
namespace flatquant::compress {

// Symmetric, per token (row of the last dimension).
//   hi = max(max_j x_j, 0) sigmoid(clip_max_logit)
//   lo = min(min_j x_j, 0) sigmoid(clip_min_logit)
//   s = max(hi, -lo) / (2^(bits-1) - 1), 1 where that is 0
//   y = s clamp(round(x/s), -2^(bits-1), 2^(bits-1) - 1)
// x: [..., n]; clip logits: [1]. Returns [..., n] in out_dtype (float, or
// bfloat16 or half for a matrix product that follows).
at::Tensor FakeQuantActivation(const at::Tensor& x, const at::Tensor& clip_max_logit,
                               const at::Tensor& clip_min_logit, int bits,
                               at::ScalarType out_dtype = at::kFloat);

// Asymmetric, per token and head (row of the last dimension).
//   hi, lo as above; s = (hi - lo) / (2^bits - 1), 1 where that is 0
//   z = round(-lo/s); y = s (clamp(round(x/s) + z, 0, 2^bits - 1) - z)
// x: [..., head_dim]; clip logits: [1].
at::Tensor FakeQuantKv(const at::Tensor& x, const at::Tensor& clip_max_logit,
                       const at::Tensor& clip_min_logit, int bits,
                       at::ScalarType out_dtype = at::kFloat);

// Symmetric, per output row, with the row clamped first.
//   hi = max(max_j w_j, 0) sigmoid(clip_max_logit)
//   lo = min(min_j w_j, 0) sigmoid(clip_min_logit)
//   s = max(hi, -lo) / (2^(bits-1) - 1), 1 where that is 0
//   y = s round(clamp(w, lo, hi) / s)
// w: [rows, cols]; clip logits: [rows, 1] (or [rows]).
at::Tensor FakeQuantWeight(const at::Tensor& w, const at::Tensor& clip_max_logit,
                           const at::Tensor& clip_min_logit, int bits,
                           at::ScalarType out_dtype = at::kFloat);

}  // namespace flatquant::compress
