#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

namespace flatquant::compress {

// y = x w^T + bias, with gradients dx = g w, dw = g^T x, dbias = sum of g.
//
// x: [..., in], float or bfloat16 (a bfloat16 x is used as it is with amp, and
// its gradient is bfloat16 too); w: [out, in], float or bfloat16; bias: [out]
// or undefined. Returns float [..., out]. amp: operands are rounded to
// bfloat16, sums are float; what backward needs is kept in bfloat16. On a CPU
// without bfloat16 products amp changes nothing.
at::Tensor LinearOp(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias, bool amp);

// Several linears of one input (q, k, v; gate, up): x is rounded once, and its
// gradient is summed inside the matrix products, in float. biases may be empty,
// or hold one entry per weight, each possibly undefined.
std::vector<at::Tensor> LinearGroup(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                    const std::vector<at::Tensor>& biases, bool amp);

}  // namespace flatquant::compress
