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
  float* half = ThreadScratch<RightTag, float>(static_cast<size_t>(rows * cols));
  for (int64_t t = token_begin; t < token_end; ++t) {
    const float* x = args.x + t * rows * cols;
    float* out = y + (t - token_begin) * rows * stride;
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        if (transform.right.size() == 0) {
          half[i * cols + j] = x[i * cols + j];
          continue;
        }
        float sum = 0;
        for (int64_t k = 0; k < cols; ++k) {
          sum += x[i * cols + k] *
                 transform.right[static_cast<size_t>(k * transform.right_stride + j)];
        }
        half[i * cols + j] = sum;
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t j = 0; j < cols; ++j) {
        if (transform.left.size() == 0) {
          out[i * stride + j] = half[i * cols + j];
          continue;
        }
        float sum = 0;
        for (int64_t k = 0; k < rows; ++k) {
          sum += transform.left[static_cast<size_t>(k * rows + i)] * half[k * cols + j];
        }
        out[i * stride + j] = sum;
      }
    }
  }
}

}  // namespace

extern const KronQuantizeKernel kKronQuantizeReference;
const KronQuantizeKernel kKronQuantizeReference = {Transform};

}  // namespace flatquant
