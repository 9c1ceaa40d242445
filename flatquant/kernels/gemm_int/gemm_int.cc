#include "flatquant/kernels/gemm_int/gemm_int.h"

#include <algorithm>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

// A task's share of the output. Tokens: 256 rows of activations (352 KB at 1376
// columns) stay in L2 while the weights pass by once.
constexpr int64_t kTokenSlice = 256;
// Rows: at least 16 KB of packed weights, so that even a single token's task
// outweighs the pool's hand-over; a multiple of every kernel's row_block.
constexpr int64_t kRowSlice = 64;

AlignedBuffer<float> CopyFloats(const std::byte* from, int64_t rows) {
  AlignedBuffer<float> floats(static_cast<size_t>((rows + 63) / 64 * 64));
  if (from != nullptr) std::memcpy(floats.data(), from, static_cast<size_t>(rows) * sizeof(float));
  return floats;
}

}  // namespace

GemmIntWeights PackGemmInt(const GemmIntSource& source, ThreadPool& pool,
                           const GemmIntKernel* kernel) {
  FLATQUANT_CHECK(source.bits >= 2 && source.bits <= 8);
  FLATQUANT_CHECK(source.cols <= kGemmIntMaxCols);
  if (kernel == nullptr) kernel = BestKernel<GemmIntKernel>().kernel;
  FLATQUANT_CHECK(kRowSlice % kernel->row_block == 0);
  GemmIntWeights weights;
  weights.bits = source.bits;
  weights.rows = source.rows;
  weights.cols = source.cols;
  weights.kernel = kernel;
  weights.scale = CopyFloats(source.scale, source.rows);
  weights.bias = CopyFloats(source.bias, source.rows);
  weights.data =
      AlignedBuffer<uint8_t>(kernel->packed_bytes(source.bits, source.rows, source.cols));
  pool.ParallelFor(static_cast<size_t>(source.rows), kRowSlice, [&](size_t begin, size_t end) {
    kernel->pack(source, static_cast<int64_t>(begin), static_cast<int64_t>(end),
                 weights.data.data());
  });
  return weights;
}

void GemmInt(const GemmIntArgs& args, ThreadPool& pool) noexcept {
  const GemmIntWeights& weights = *args.weights;
  FLATQUANT_CHECK(args.act_stride >= weights.cols && args.act_stride % kGemmIntActAlign == 0);
  const int64_t row_slices = (weights.rows + kRowSlice - 1) / kRowSlice;
  const int64_t token_slices = (args.tokens + kTokenSlice - 1) / kTokenSlice;
  // Neighbouring tasks share their tokens.
  pool.ParallelFor(static_cast<size_t>(row_slices * token_slices), 1, [&](size_t task, size_t) {
    const int64_t row = static_cast<int64_t>(task) % row_slices * kRowSlice;
    const int64_t token = static_cast<int64_t>(task) / row_slices * kTokenSlice;
    weights.kernel->compute(args, token, std::min(args.tokens, token + kTokenSlice), row,
                            std::min(weights.rows, row + kRowSlice));
  });
}

}  // namespace flatquant
