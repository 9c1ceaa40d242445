#pragma once

#include <ATen/core/Tensor.h>

#include "flatquant/compress/block_forward.h"

namespace flatquant::compress {

// The symmetric grid of each row of a weight, or of each group of group_size columns of a
// row, fixed before its codes are chosen:
//   hi = max(max_j w_j, 0) sigmoid(clip.max), lo = min(min_j w_j, 0) sigmoid(clip.min)
//   s = max(hi, -lo) / (2^(bits-1) - 1), 1 where that is 0
struct WeightGrid {
  int bits = 4;
  int64_t group_size = 0;  // 0: one group of all columns
  at::Tensor scale;        // s: [rows, groups], float32, as it is packed
  at::Tensor high;         // hi and lo: [rows, groups], in the weight's element type
  at::Tensor low;
};

// A weight on its grid, w = scale * code.
struct QuantizedWeight {
  int bits = 4;
  at::Tensor codes;        // int8 [rows, cols], in [-2^(bits-1), 2^(bits-1) - 1]
  at::Tensor scale;        // float32 [rows, groups]
  int64_t group_size = 0;  // as in WeightGrid

  at::Tensor Values() const;  // float32 [rows, cols]
};

// What a group has, for each of its columns: [rows, groups] -> [rows, cols]; of one group
// for the whole row, [rows, 1] as it is.
at::Tensor OverColumns(const at::Tensor& of_groups, int64_t group_size, int64_t cols);

// weight: [rows, cols], float32 or float64. clip: [rows, 1] logits, or undefined; they
// shrink every group of their row. group_size: 0 for one group; so is a group of cols or more.
WeightGrid MakeWeightGrid(const at::Tensor& weight, const ClipLogits& clip, int bits,
                          int64_t group_size = 0);

// code = round(clamp(w, lo, hi) / s), half to even.
QuantizedWeight RoundToNearest(const at::Tensor& weight, const WeightGrid& grid);

}  // namespace flatquant::compress
