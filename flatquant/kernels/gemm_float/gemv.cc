#include "flatquant/kernels/gemm_float/gemv.h"

#include <algorithm>

#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct ArrangedTag {};

// Bytes of weights per task: some microseconds of memory traffic, in one stretch.
int64_t RowsPerTask(size_t row_bytes) {
  constexpr size_t kTaskBytes = 131072;
  const auto rows = static_cast<int64_t>(kTaskBytes / std::max<size_t>(1, row_bytes));
  return std::max<int64_t>(1, rows);
}

}  // namespace

void Gemv(const GemmFloatArgs& args, ThreadPool& pool, const GemvKernel* kernel) noexcept {
  if (kernel == nullptr) kernel = BestKernel<GemvKernel>().kernel;
  const FloatWeights& weights = *args.weights;
  GemvArgs gemv;
  gemv.weights = &weights;
  gemv.row_begin = args.row_begin;
  gemv.x_stride = kernel->arranged_bytes(weights);
  gemv.tokens = args.tokens;
  gemv.y = args.y;
  gemv.y_stride = args.y_stride;
  uint8_t* arranged =
      ThreadScratch<ArrangedTag, uint8_t>(static_cast<size_t>(args.tokens * gemv.x_stride));
  gemv.x = arranged;
  pool.ParallelFor(static_cast<size_t>(args.tokens), 1, [&](size_t t, size_t) {
    const auto token = static_cast<int64_t>(t);
    kernel->arrange(weights, args.x + token * weights.cols, arranged + token * gemv.x_stride);
  });
  pool.ParallelFor(static_cast<size_t>(args.row_end - args.row_begin),
                   static_cast<size_t>(RowsPerTask(weights.row_bytes())),
                   [&](size_t begin, size_t end) {
                     kernel->run(gemv, static_cast<int64_t>(begin), static_cast<int64_t>(end));
                   });
}

}  // namespace flatquant
