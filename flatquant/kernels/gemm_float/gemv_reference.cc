#include <algorithm>
#include <cstring>

#include "flatquant/base/half.h"
#include "flatquant/kernels/gemm_float/gemv.h"

namespace flatquant {
namespace {

// Columns that are widened at once.
constexpr int64_t kChunk = 512;

int64_t ArrangedBytes(const FloatWeights& weights) noexcept {
  return (weights.cols * 4 + 63) / 64 * 64;
}

void Arrange(const FloatWeights& weights, const float* x, void* arranged) noexcept {
  float* out = static_cast<float*>(arranged);
  for (int64_t c = 0; c < weights.cols; ++c) {
    out[c] = weights.math == GemmFloatMath::kBF16 ? BF16ToFloat(FloatToBF16(x[c])) : x[c];
  }
}

// Sixteen partial sums, as the matrix product's reference has them.
float Dot(const float* a, const float* b, int64_t n) {
  constexpr int64_t kParts = 16;
  float part[kParts] = {};
  for (int64_t c = 0; c < n; ++c) part[c % kParts] += a[c] * b[c];
  float sum = 0;
  for (float p : part) sum += p;
  return sum;
}

void Run(const GemvArgs& args, int64_t begin, int64_t end) noexcept {
  const FloatWeights& weights = *args.weights;
  float chunk[kChunk];
  for (int64_t i = begin; i < end; ++i) {
    const int64_t row = args.row_begin + i;
    for (int64_t m = 0; m < args.tokens; ++m) args.y[m * args.y_stride + i] = 0;
    for (int64_t c = 0; c < weights.cols; c += kChunk) {
      const int64_t n = std::min(kChunk, weights.cols - c);
      WidenRow(weights, row, c, c + n, chunk);
      for (int64_t m = 0; m < args.tokens; ++m) {
        const auto* x = static_cast<const uint8_t*>(args.x) + m * args.x_stride;
        args.y[m * args.y_stride + i] += Dot(reinterpret_cast<const float*>(x) + c, chunk, n);
      }
    }
    const size_t r = static_cast<size_t>(row);
    const float scale = weights.scale.size() > 0 ? weights.scale[r] : 1.0f;
    const float bias = weights.bias.size() > 0 ? weights.bias[r] : 0.0f;
    for (int64_t m = 0; m < args.tokens; ++m) {
      float& y = args.y[m * args.y_stride + i];
      y = y * scale + bias;
    }
  }
}

}  // namespace

extern const GemvKernel kGemvReference;
const GemvKernel kGemvReference = {ArrangedBytes, Arrange, Run};

}  // namespace flatquant
