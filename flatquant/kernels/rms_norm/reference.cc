#include <cmath>

#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"
#include "flatquant/kernels/row_tasks.h"

namespace flatquant {
namespace {

// Sixteen partial sums, because a single one would have to be added in order and
// could not be vectorised.
float SumOfSquares(const float* x, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lane[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= n; c += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += x[c + j] * x[c + j];
  }
  for (int64_t j = 0; c + j < n; ++j) lane[j] += x[c + j] * x[c + j];
  float sum = 0;
  for (int64_t j = 0; j < kLanes; ++j) sum += lane[j];
  return sum;
}

void Run(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) noexcept {
  for (int64_t i = row_begin; i < row_end; ++i) {
    const float* x = args.x + i * args.cols;
    float* y = args.y + i * args.cols;
    const float mean = SumOfSquares(x, args.cols) / static_cast<float>(args.cols);
    const float scale = 1.0f / std::sqrt(mean + args.eps);
    for (int64_t c = 0; c < args.cols; ++c) y[c] = x[c] * scale * args.weight[c];
  }
}

}  // namespace

extern const RmsNormKernel kRmsNormReference;
const RmsNormKernel kRmsNormReference = {Run};

void RmsNorm(const RmsNormArgs& args, ThreadPool& pool) noexcept {
  RunRows(*BestKernel<RmsNormKernel>().kernel, args, args.rows, args.cols, pool);
}

}  // namespace flatquant
