#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/rope/rope.h"
#include "flatquant/kernels/row_tasks.h"

namespace flatquant {
namespace {

void Run(const RopeArgs& args, int64_t token_begin, int64_t token_end) noexcept {
  const int64_t half = args.head_dim / 2;
  for (int64_t t = token_begin; t < token_end; ++t) {
    const float* cos = args.cos + t * half;
    const float* sin = args.sin + t * half;
    for (int64_t h = 0; h < args.heads; ++h) {
      float* __restrict low = args.x + (t * args.heads + h) * args.head_dim;
      float* __restrict high = low + half;
      for (int64_t i = 0; i < half; ++i) {
        const float a = low[i];
        const float b = high[i];
        low[i] = a * cos[i] - b * sin[i];
        high[i] = b * cos[i] + a * sin[i];
      }
    }
  }
}

}  // namespace

extern const RopeKernel kRopeReference;
const RopeKernel kRopeReference = {Run};

void Rope(const RopeArgs& args, ThreadPool& pool) noexcept {
  RunRows(*BestKernel<RopeKernel>().kernel, args, args.tokens, args.heads * args.head_dim, pool);
}

}  // namespace flatquant
