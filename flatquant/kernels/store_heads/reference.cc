#include <algorithm>
#include <cmath>

#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/store_heads/store_heads.h"

namespace flatquant {
namespace {

struct VectorTag {};
struct ProductTag {};

void Normalize(const StoreHeadsArgs& args, float* x) {
  float squares = 0;
  for (int64_t i = 0; i < args.head_dim; ++i) squares += x[i] * x[i];
  const float mean = squares / static_cast<float>(args.head_dim);
  const float scale = 1.0f / std::sqrt(mean + args.norm_eps);
  for (int64_t i = 0; i < args.head_dim; ++i) x[i] *= scale * args.norm[i];
}

void Rotate(const StoreHeadsArgs& args, int64_t token, float* x) {
  const int64_t half = args.head_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    const float cos = args.cos[token * half + i];
    const float sin = args.sin[token * half + i];
    const float a = x[i];
    const float b = x[half + i];
    x[i] = a * cos - b * sin;
    x[half + i] = b * cos + a * sin;
  }
}

void Run(const StoreHeadsArgs& args, int64_t token_begin, int64_t token_end) noexcept {
  const int64_t n = args.head_dim;
  float* vector = ThreadScratch<VectorTag, float>(static_cast<size_t>(n));
  float* product = ThreadScratch<ProductTag, float>(static_cast<size_t>(n));
  for (int64_t t = token_begin; t < token_end; ++t) {
    for (int64_t h = 0; h < args.heads; ++h) {
      const int64_t offset = (t * args.heads + h) * n;
      float* result = vector;
      std::copy(args.x + offset, args.x + offset + n, vector);
      if (args.norm != nullptr) Normalize(args, vector);
      if (args.cos != nullptr) Rotate(args, t, vector);
      if (args.transform != nullptr) {
        std::fill(product, product + n, 0.0f);
        for (int64_t i = 0; i < n; ++i) {
          const float* row = args.transform->right.data() + i * args.transform->right_stride;
          for (int64_t j = 0; j < n; ++j) product[j] += vector[i] * row[j];
        }
        result = product;
      }
      if (args.y != nullptr) {
        std::copy(result, result + n, args.y + offset);
      } else {
        QuantizeKvVector(args.plane, h, args.first_position + t, args.clip_max, args.clip_min,
                         result);
      }
    }
  }
}

}  // namespace

extern const StoreHeadsKernel kStoreHeadsReference;
const StoreHeadsKernel kStoreHeadsReference = {Run};

}  // namespace flatquant
