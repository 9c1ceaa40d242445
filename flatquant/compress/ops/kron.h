#pragma once

#include <ATen/core/Tensor.h>

namespace flatquant::compress {

// Multiplies each row x by left (x) right: with the row seen as X [L, R],
// Y = left^T X right.
//
// x: [..., L * R]; left: [L, L] or undefined (identity; then L = n / R); right:
// [R, R] or undefined (identity; then R = n / L). At least one is defined.
// Gradients go to x, left and right:
//   dX = left dY right^T, dleft = sum X right dY^T, dright = sum X^T left dY.
at::Tensor KronTransform(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right);

}  // namespace flatquant::compress
