#include "flatquant/kernels/attention/attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct TaskTag {};
struct PartTag {};
struct JoinTag {};
struct SumsTag {};   // of all pieces of a batch
struct BlockTag {};  // of one block with many rows

// A thread takes neighbouring pieces of a cache in a row, for a kernel asks memory for what
// lies ahead, beyond its piece, too: up to 14% with two threads. It takes so few that threads
// end at most an eighth of their work apart.
constexpr int64_t kRunsPerThread = 8;

constexpr int64_t RoundUp(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

// Floats of a block's sums: values, tops, totals, whole cache lines of each.
int64_t SumsSize(int64_t rows, int64_t head_dim) {
  return RoundUp(rows * head_dim, 16) + 2 * RoundUp(rows, 16);
}

AttentionSums SumsAt(float* memory, int64_t rows, int64_t head_dim) {
  float* top = memory + RoundUp(rows * head_dim, 16);
  return {top, top + RoundUp(rows, 16), memory};
}

// y of a block's rows from its sums over `parts` ranges of keys, `stride` floats
// apart, in the order of the ranges.
void Finish(const AttentionBlock& block, float* memory, int64_t parts, int64_t stride) {
  const int64_t n = block.args->k.head_dim;
  const int64_t rows = block.rows();
  for (int64_t r = 0; r < rows; ++r) {
    float top = kAttentionLowest;
    for (int64_t p = 0; p < parts; ++p) {
      top = std::max(top, SumsAt(memory + p * stride, rows, n).top[r]);
    }
    float total = 0;
    float* __restrict y = block.args->y + block.Offset(r);
    std::fill(y, y + n, 0.0f);
    for (int64_t p = 0; p < parts; ++p) {
      const AttentionSums sums = SumsAt(memory + p * stride, rows, n);
      const float weight = std::exp(sums.top[r] - top);
      const float* __restrict values = sums.values + r * n;
      total += sums.total[r] * weight;
      for (int64_t i = 0; i < n; ++i) y[i] += weight * values[i];
    }
    const float share = 1.0f / total;
    for (int64_t i = 0; i < n; ++i) y[i] *= share;
  }
}

// A sequence cut by keys: its sums and the counters that tell when a KV head's last
// piece is done. `parts` of a head lie together.
struct Split {
  int64_t first_piece;  // of kAttentionSplitKeys positions
  int64_t parts;
  int64_t stride;  // floats of a part
  float* sums;
  int32_t* joined;  // [kv_heads]
};

struct Task {
  int64_t item;  // of the batch
  int64_t kv_head;
  int64_t token_begin;
  int64_t part;  // -1: all keys of the tokens
};

bool IsFewRows(const AttentionArgs& args) {
  return args.tokens * (args.heads / args.k.heads) <= kAttentionFewRows;
}

int64_t PiecesOf(int64_t positions) {
  return (positions + kAttentionSplitKeys - 1) / kAttentionSplitKeys;
}

class Batch {
 public:
  Batch(std::span<const AttentionArgs> items, const AttentionKernel& kernel, int threads)
      : items_(items), kernel_(kernel) {
    // Room for the caches' capacity, not for today's length: decoding then allocates
    // once.
    int64_t tasks = 0, floats = 0, heads = 0;
    for (const AttentionArgs& args : items) {
      const int64_t kv_heads = args.k.heads;
      FLATQUANT_CHECK(kv_heads > 0 && args.heads % kv_heads == 0 && args.v.heads == kv_heads);
      FLATQUANT_CHECK(args.first_position + args.tokens <= args.k.capacity);
      heads += kv_heads;
      if (IsFewRows(args)) {
        const int64_t pieces = kv_heads * PiecesOf(args.k.capacity);
        tasks += pieces;
        floats += pieces * SumsSize(kAttentionFewRows, args.k.head_dim);
      } else {
        const int64_t slice = Slice(args);
        tasks += kv_heads * ((args.tokens + slice - 1) / slice);
      }
    }
    tasks_ = ThreadScratch<TaskTag, Task>(static_cast<size_t>(tasks));
    splits_ = ThreadScratch<PartTag, Split>(items.size());
    joined_ = ThreadScratch<JoinTag, int32_t>(static_cast<size_t>(heads));
    std::fill(joined_, joined_ + heads, 0);
    float* sums = ThreadScratch<SumsTag, float>(static_cast<size_t>(floats));
    AddManyRows();
    many_ = count_;
    AddFewRows(sums);
    run_ = std::max<int64_t>(1, (count_ - many_) / (kRunsPerThread * threads));
  }

  int64_t runs() const { return many_ + (count_ - many_ + run_ - 1) / run_; }

  void Run(int64_t index) const {
    if (index < many_) return RunTask(tasks_[index]);
    const int64_t first = many_ + (index - many_) * run_;
    for (int64_t i = first; i < std::min(first + run_, count_); ++i) RunTask(tasks_[i]);
  }

 private:
  void RunTask(const Task& task) const {
    const AttentionArgs& args = items_[static_cast<size_t>(task.item)];
    if (task.part < 0) {
      RunManyRows(args, task);
    } else {
      RunPart(args, task);
    }
  }

  int64_t Slice(const AttentionArgs& args) const {
    return kernel_.token_slice(args.heads / args.k.heads);
  }

  // The last tokens see the most keys: started first, they do not end last.
  void AddManyRows() {
    for (size_t i = 0; i < items_.size(); ++i) {
      const AttentionArgs& args = items_[i];
      if (IsFewRows(args)) continue;
      const int64_t slice = Slice(args);
      for (int64_t s = (args.tokens - 1) / slice; s >= 0; --s) {
        for (int64_t h = 0; h < args.k.heads; ++h) {
          tasks_[count_++] = {static_cast<int64_t>(i), h, s * slice, -1};
        }
      }
    }
  }

  void AddFewRows(float* sums) {
    int32_t* joined = joined_;
    for (size_t i = 0; i < items_.size(); ++i) {
      const AttentionArgs& args = items_[i];
      if (!IsFewRows(args)) continue;
      const AttentionBlock all = {&args, 0, 0, args.tokens, 0, 0};
      if (args.tokens == 0) continue;
      Split& split = splits_[i];
      split.first_piece = all.First(0) / kAttentionSplitKeys;
      split.parts = PiecesOf(args.first_position + args.tokens) - split.first_piece;
      split.stride = SumsSize(all.rows(), args.k.head_dim);
      split.sums = sums;
      split.joined = joined;
      joined += args.k.heads;
      sums += args.k.heads * split.parts * split.stride;
      for (int64_t h = 0; h < args.k.heads; ++h) {
        for (int64_t p = 0; p < split.parts; ++p) {
          tasks_[count_++] = {static_cast<int64_t>(i), h, 0, p};
        }
      }
    }
  }

  void RunManyRows(const AttentionArgs& args, const Task& task) const {
    AttentionBlock block = {&args,
                            task.kv_head,
                            task.token_begin,
                            std::min(args.tokens, task.token_begin + Slice(args)),
                            0,
                            0};
    block.key_begin = block.First(0);
    block.key_end = args.first_position + block.token_end;
    const int64_t size = SumsSize(block.rows(), args.k.head_dim);
    float* memory = ThreadScratch<BlockTag, float>(static_cast<size_t>(size));
    kernel_.many_rows(block, SumsAt(memory, block.rows(), args.k.head_dim));
    Finish(block, memory, 1, size);
  }

  void RunPart(const AttentionArgs& args, const Task& task) const {
    const Split& split = splits_[task.item];
    const int64_t piece = (split.first_piece + task.part) * kAttentionSplitKeys;
    AttentionBlock block = {&args, task.kv_head, 0, args.tokens, 0, 0};
    block.key_begin = std::max(block.First(0), piece);
    block.key_end = std::min(args.first_position + args.tokens, piece + kAttentionSplitKeys);
    float* head = split.sums + task.kv_head * split.parts * split.stride;
    kernel_.few_rows(block, SumsAt(head + task.part * split.stride, block.rows(), args.k.head_dim));
    // Whoever finds the other pieces done adds all up, in their order.
    const std::atomic_ref<int32_t> joined(split.joined[task.kv_head]);
    if (joined.fetch_add(1, std::memory_order_acq_rel) + 1 == split.parts) {
      Finish(block, head, split.parts, split.stride);
    }
  }

  std::span<const AttentionArgs> items_;
  const AttentionKernel& kernel_;
  Task* tasks_ = nullptr;
  int64_t count_ = 0;
  int64_t many_ = 0;  // tasks with many rows; they come first
  int64_t run_ = 1;   // pieces that a thread takes at a time
  Split* splits_ = nullptr;
  int32_t* joined_ = nullptr;
};

}  // namespace

void Attention(std::span<const AttentionArgs> batch, ThreadPool& pool,
               const AttentionKernel* kernel) noexcept {
  if (kernel == nullptr) kernel = BestKernel<AttentionKernel>().kernel;
  const Batch work(batch, *kernel, pool.threads());
  pool.ParallelFor(static_cast<size_t>(work.runs()), 1,
                   [&](size_t run, size_t) { work.Run(static_cast<int64_t>(run)); });
}

}  // namespace flatquant
