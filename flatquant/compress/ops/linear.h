#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "flatquant/compress/ops/amp.h"

namespace flatquant::compress {

// y = x w^T + bias, with gradients dx = g w, dw = g^T x, dbias = sum of g.
//
// x: [..., in], float or of amp's type (then it is used as it is, and its gradient
// has that type too); w: [out, in], likewise; bias: [out] or undefined. Returns
// float [..., out]. amp: operands are rounded, sums are float; what backward needs
// is kept rounded. On a CPU without bfloat16 products kBF16 changes nothing.
at::Tensor LinearOp(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias, Amp amp);

// Several linears of one input (q, k, v; gate, up): x is rounded once, and its
// gradient is summed inside the matrix products, in float. biases may be empty,
// or hold one entry per weight, each possibly undefined.
std::vector<at::Tensor> LinearGroup(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                    const std::vector<at::Tensor>& biases, Amp amp);

}  // namespace flatquant::compress
