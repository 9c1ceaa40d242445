#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <cstdint>

#include "flatquant/compress/ops/amp.h"

// The operations of this folder written with LibTorch's own: the definition
// that the fused versions must equal (forward and gradient), and what runs on
// tensors that those do not take (other devices, other dtypes). Contracts are in
// the headers of the same function names.
namespace flatquant::compress::composite {

at::Tensor FakeQuantActivation(const at::Tensor& x, const at::Tensor& clip_max_logit,
                               const at::Tensor& clip_min_logit, int bits);
at::Tensor FakeQuantKv(const at::Tensor& x, const at::Tensor& clip_max_logit,
                       const at::Tensor& clip_min_logit, int bits);
at::Tensor FakeQuantWeight(const at::Tensor& w, const at::Tensor& clip_max_logit,
                           const at::Tensor& clip_min_logit, int bits);
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t window, Amp amp);
at::Tensor Linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias, Amp amp);
at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps);
at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up);
at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin);
at::Tensor KronTransform(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right);
void AdamWStep(const at::Tensor& p, const at::Tensor& m, const at::Tensor& v, const at::Tensor& g,
               const at::Tensor& rate, const at::Tensor& factors, double decay);

}  // namespace flatquant::compress::composite
