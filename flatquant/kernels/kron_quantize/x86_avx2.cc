// Both factors as register-blocked products: `right` for the rows of all tokens
// of the task at once, `left` token by token.
#include <cstring>

#include "flatquant/kernels/float_tile.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct RightTag {};

void Transform(const KronQuantizeArgs& args, int64_t token_begin, int64_t token_end, float* y,
               int64_t stride) noexcept {
  const KronTransform& transform = *args.transform;
  const int64_t rows = transform.left_size;
  const int64_t cols = transform.right_size;
  const int64_t tokens = token_end - token_begin;
  const float* x = args.x + token_begin * rows * cols;
  const bool has_left = transform.left.size() > 0;
  // Without a left factor, the right one's product is the result.
  float* half =
      has_left ? ThreadScratch<RightTag, float>(static_cast<size_t>(tokens * rows * stride)) : y;
  if (transform.right.size() > 0) {
    MultiplySmall(tokens * rows, stride, cols, {x, cols, 1}, transform.right.data(),
                  transform.right_stride, half, stride, false);
  } else {
    for (int64_t i = 0; i < tokens * rows; ++i) {
      std::memcpy(half + i * stride, x + i * cols, static_cast<size_t>(cols) * sizeof(float));
      std::memset(half + i * stride + cols, 0, static_cast<size_t>(stride - cols) * sizeof(float));
    }
  }
  if (!has_left) return;
  for (int64_t t = 0; t < tokens; ++t) {
    MultiplySmall(rows, stride, rows, {transform.left.data(), 1, rows}, half + t * rows * stride,
                  stride, y + t * rows * stride, stride, false);
  }
}

}  // namespace

extern const KronQuantizeKernel kKronQuantizeX86Avx2;
const KronQuantizeKernel kKronQuantizeX86Avx2 = {Transform};

}  // namespace flatquant
