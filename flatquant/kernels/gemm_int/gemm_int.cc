#include "flatquant/kernels/gemm_int/gemm_int.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/kernels/gemm_int/gemm_scratch.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

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

// More linears than any site feeds.
constexpr size_t kMaxLinears = 8;

// A linear's part of the tasks of a group.
struct Share {
  const GemmIntArgs* args;
  int64_t task_begin;
  int64_t task_end;
  int64_t row_slices;
};

Share ShareOf(const GemmIntArgs& args, int64_t task_begin) {
  const GemmIntWeights& weights = *args.weights;
  FLATQUANT_CHECK(args.act_stride >= weights.cols && args.act_stride % kGemmIntActAlign == 0);
  const int64_t row_slices = (weights.rows + kRowSlice - 1) / kRowSlice;
  const int64_t token_slices = (args.tokens + kTokenSlice - 1) / kTokenSlice;
  return {&args, task_begin, task_begin + row_slices * token_slices, row_slices};
}

// Neighbouring tasks share their tokens.
void RunTask(const Share& share, int64_t task) {
  const GemmIntArgs& args = *share.args;
  const int64_t rows = args.weights->rows;
  const int64_t index = task - share.task_begin;
  const int64_t row = index % share.row_slices * kRowSlice;
  const int64_t token = index / share.row_slices * kTokenSlice;
  args.weights->kernel->compute(args, token, std::min(args.tokens, token + kTokenSlice), row,
                                std::min(rows, row + kRowSlice));
}

}  // namespace

uint8_t* GemmIntScratch(size_t bytes) {
  struct Tag {};
  return ThreadScratch<Tag, uint8_t>(bytes);
}

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

void GemmInt(std::span<const GemmIntArgs> linears, ThreadPool& pool) noexcept {
  FLATQUANT_CHECK(linears.size() <= kMaxLinears);
  std::array<Share, kMaxLinears> shares;
  int64_t tasks = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    shares[i] = ShareOf(linears[i], tasks);
    tasks = shares[i].task_end;
  }
  // The body captures one pointer, which std::function holds without allocating.
  pool.ParallelFor(static_cast<size_t>(tasks), 1, [first = shares.data()](size_t task, size_t) {
    const Share* share = first;
    while (static_cast<int64_t>(task) >= share->task_end) ++share;
    RunTask(*share, static_cast<int64_t>(task));
  });
}

void GemmInt(const GemmIntArgs& args, ThreadPool& pool) noexcept { GemmInt({&args, 1}, pool); }

}  // namespace flatquant
