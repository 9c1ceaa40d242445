#include "flatquant/kernels/gemm_float/gemv.h"

#include <algorithm>

#include "flatquant/base/half.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct ActTag {};

// Columns that are widened at once: 2 KB of floats.
constexpr int64_t kChunk = 512;
// Partial sums: four AVX registers, which hide the latency of their additions.
constexpr int64_t kLanes = 32;

float Dot(const float* __restrict a, const float* __restrict b, int64_t n) {
  float lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += a[c + j] * b[c + j];
  }
  for (int64_t j = 0; c + j < n; ++j) lane[j] += a[c + j] * b[c + j];
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

// Bytes of weights per task: some microseconds of memory traffic.
int64_t RowsPerTask(size_t row_bytes) {
  constexpr size_t kTaskBytes = 65536;
  return std::max<int64_t>(1, static_cast<int64_t>(kTaskBytes / std::max<size_t>(1, row_bytes)));
}

}  // namespace

void Gemv(const GemmFloatArgs& args, const uint16_t* x_bf16, ThreadPool& pool) noexcept {
  const FloatWeights& weights = *args.weights;
  const int64_t cols = weights.cols;
  const float* x = args.x;
  if (x_bf16 != nullptr) {
    float* rounded = ThreadScratch<ActTag, float>(static_cast<size_t>(args.tokens * cols));
    BF16ToFloat(x_bf16, rounded, static_cast<size_t>(args.tokens * cols));
    x = rounded;
  }
  pool.ParallelFor(
      static_cast<size_t>(args.row_end - args.row_begin),
      static_cast<size_t>(RowsPerTask(weights.row_bytes())), [&](size_t begin, size_t end) {
        float chunk[kChunk];
        for (int64_t i = static_cast<int64_t>(begin); i < static_cast<int64_t>(end); ++i) {
          const int64_t row = args.row_begin + i;
          for (int64_t m = 0; m < args.tokens; ++m) args.y[m * args.y_stride + i] = 0;
          for (int64_t c = 0; c < cols; c += kChunk) {
            const int64_t n = std::min(kChunk, cols - c);
            WidenRow(weights, row, c, c + n, chunk);
            for (int64_t m = 0; m < args.tokens; ++m) {
              args.y[m * args.y_stride + i] += Dot(x + m * cols + c, chunk, n);
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
      });
}

}  // namespace flatquant
