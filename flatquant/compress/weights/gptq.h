#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

#include "flatquant/compress/weights/quantized_weight.h"

namespace flatquant::compress {

struct GptqOptions {
  // Fraction of the Hessian's mean diagonal that is added to the diagonal.
  double damping = 0.01;
  // Columns whose updates are applied together to the rest of the matrix: one
  // matrix product instead of as many rank-1 updates. Does not change the result.
  int64_t block_columns = 128;
  // Columns in the order of falling Hessian diagonal, not from left to right.
  bool act_order = false;
  // Search the clip of each row or group, see ShrinkToLeastError.
  bool mse = false;
};

// GPTQ (Frantar et al., ICLR 2023): codes chosen column by column, each column's
// rounding error being made up for by the columns that are still open. With
// H = sum of x^T x over the inputs x, U the upper Cholesky factor of (H + damping)^-1
// and w_j the current column j:
//
//   q_j = clamp(round(w_j / s)),  e_j = (w_j - s q_j) / U_jj,  w_k -= e_j U_jk for k > j
//
// It lowers tr(E H E^T), E = weight - s q, the squared error of the linear's output.
// A column whose input is always zero takes code 0.
//
// A grid of one group per row is used as it is, but for `mse`. The grid of a smaller group
// is that of its columns at the moment when the first of them is reached, with what the
// columns before them left to make up for; in activation order, where groups have no such
// moment, that of the weight as it came.
//
// weight: [rows, cols], any float type; hessian: [cols, cols], float64 on the same
// device. Computes in float64. Clips of the grid only act through its scales.
// Errors: gptq.singular with `where` when H + damping is not positive definite.
QuantizedWeight Gptq(const at::Tensor& weight, const WeightGrid& grid, const at::Tensor& hessian,
                     const GptqOptions& options, const std::string& where);

// The grid with each row's or group's range shrunk by the factor in {1, 0.99, ..., 0.21}
// that gives the smallest sum over it of |w - round_to_grid(w)|^2.4 (the search of
// GPTQ's implementation: steps, range and exponent are its own).
WeightGrid ShrinkToLeastError(const at::Tensor& weight, const WeightGrid& grid);

// The sum of squares of the linear's output error, tr(E H E^T).
double HessianError(const at::Tensor& weight, const QuantizedWeight& quantized,
                    const at::Tensor& hessian);

}  // namespace flatquant::compress
