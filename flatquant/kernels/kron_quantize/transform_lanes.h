#pragma once

#include <cstdint>

#include "flatquant/kernels/float_tile.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Both factors as register-blocked products: `right` for the rows of all tokens at
// once, `left` token by token.
inline void TransformLanes(const KronTransform& transform, const float* x, int64_t tokens,
                           int /*bits*/, const KronScratch& scratch, float* y) noexcept {
  const int64_t rows = transform.left_size;
  const int64_t cols = transform.right_size;
  const int64_t stride = scratch.stride;
  const bool has_left = transform.left.size() > 0;
  const float* half = x;
  if (transform.right.size() > 0) {
    // Without a left factor, the right one's product is the result.
    float* product = has_left ? scratch.half : y;
    MultiplySmall(tokens * rows, stride, cols, {x, cols, 1}, transform.right.data(),
                  transform.right_stride, product, stride, false);
    half = product;
  } else if (cols != stride) {
    for (int64_t i = 0; i < tokens * rows; ++i) {
      for (int64_t c = 0; c < stride; ++c) {
        scratch.half[i * stride + c] = c < cols ? x[i * cols + c] : 0.0f;
      }
    }
    half = scratch.half;
  }
  if (!has_left) return;
  for (int64_t t = 0; t < tokens; ++t) {
    MultiplySmall(rows, stride, rows, {transform.left.data(), 1, rows}, half + t * rows * stride,
                  stride, y + t * rows * stride, stride, false);
  }
}

}  // namespace
}  // namespace flatquant
