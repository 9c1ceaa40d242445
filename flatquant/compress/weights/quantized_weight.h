#pragma once

#include <ATen/core/Tensor.h>

#include "flatquant/compress/block_forward.h"

namespace flatquant::compress {

// The symmetric grid of each row of a weight, fixed before its codes are chosen:
//   hi = max(max_j w_j, 0) sigmoid(clip.max), lo = min(min_j w_j, 0) sigmoid(clip.min)
//   s = max(hi, -lo) / (2^(bits-1) - 1), 1 where that is 0
struct WeightGrid {
  int bits = 4;
  at::Tensor scale;  // s: [rows, 1], float32, as it is packed
  at::Tensor high;   // hi and lo: [rows, 1], in the weight's element type
  at::Tensor low;
};

// A weight on its grid, w = scale * code.
struct QuantizedWeight {
  int bits = 4;
  at::Tensor codes;  // int8 [rows, cols], in [-2^(bits-1), 2^(bits-1) - 1]
  at::Tensor scale;  // float32 [rows, 1]

  at::Tensor Values() const;  // float32 [rows, cols]
};

// weight: [rows, cols], float32 or float64. clip: [rows, 1] logits, or undefined.
WeightGrid MakeWeightGrid(const at::Tensor& weight, const ClipLogits& clip, int bits);

// code = round(clamp(w, lo, hi) / s), half to even.
QuantizedWeight RoundToNearest(const at::Tensor& weight, const WeightGrid& grid);

}  // namespace flatquant::compress
