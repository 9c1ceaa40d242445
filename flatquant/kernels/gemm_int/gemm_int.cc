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

// A task's share of the output. Sums are exact, so the cut changes no result.
//
// Tokens: a kernel that widens weights does it once per task; over 512 tokens that
// costs the AMX one some percent. 512 tokens' block of columns stays in the L2.
constexpr int64_t kTokenSlice = 512;
// Rows, multiples of every kernel's row_block: as many as leave enough tasks to share
// out. With few tokens a task streams its weights from memory, at best a few hundred KB
// in a row, and threads should end together; with many, a block of activations that is
// in the L2 should pass many rows.
constexpr int64_t kLeastRowSlice = 64;
constexpr int64_t kMostRowSlice = 256;
constexpr int64_t kFewTokens = 16;
constexpr int64_t kTasksPerThread = 4;
constexpr int64_t kTasksPerThreadFewTokens = 8;

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
  int64_t row_slice;
  int64_t row_slices;
  int64_t token_slice;
};

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t RowSlice(const GemmIntArgs& args, int64_t token_slices, int threads) {
  const int64_t tasks =
      threads * (args.tokens <= kFewTokens ? kTasksPerThreadFewTokens : kTasksPerThread);
  int64_t slice = kMostRowSlice;
  while (slice > kLeastRowSlice && CeilDiv(args.weights->rows, slice) * token_slices < tasks) {
    slice /= 2;
  }
  return slice;
}

Share ShareOf(const GemmIntArgs& args, int64_t task_begin, int threads) {
  const int64_t rows = args.weights->rows;
  FLATQUANT_CHECK(args.act_stride >= args.weights->cols && args.act_stride % kGemmIntActAlign == 0);
  // Slices of about equal size, in whole tiles.
  constexpr int64_t kTileTokens = 32;
  const int64_t token_slices = CeilDiv(args.tokens, kTokenSlice);
  const int64_t token_slice =
      CeilDiv(CeilDiv(args.tokens, std::max<int64_t>(1, token_slices)), kTileTokens) * kTileTokens;
  const int64_t row_slice = RowSlice(args, token_slices, threads);
  const int64_t row_slices = CeilDiv(rows, row_slice);
  return {&args,     task_begin, task_begin + row_slices * token_slices,
          row_slice, row_slices, token_slice};
}

// Neighbouring tasks share their tokens.
void RunTask(const Share& share, int64_t task) {
  const GemmIntArgs& args = *share.args;
  const int64_t index = task - share.task_begin;
  const int64_t row = index % share.row_slices * share.row_slice;
  const int64_t token = index / share.row_slices * share.token_slice;
  args.weights->kernel->compute(args, token, std::min(args.tokens, token + share.token_slice), row,
                                std::min(args.weights->rows, row + share.row_slice));
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
  FLATQUANT_CHECK(kLeastRowSlice % kernel->row_block == 0);
  GemmIntWeights weights;
  weights.bits = source.bits;
  weights.rows = source.rows;
  weights.cols = source.cols;
  weights.kernel = kernel;
  weights.scale = CopyFloats(source.scale, source.rows);
  weights.bias = CopyFloats(source.bias, source.rows);
  weights.data =
      AlignedBuffer<uint8_t>(kernel->packed_bytes(source.bits, source.rows, source.cols));
  pool.ParallelFor(static_cast<size_t>(source.rows), kLeastRowSlice, [&](size_t begin, size_t end) {
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
    shares[i] = ShareOf(linears[i], tasks, pool.threads());
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
