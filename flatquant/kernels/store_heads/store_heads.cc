#include "flatquant/kernels/store_heads/store_heads.h"

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

// Tokens of a task: about 32 vectors, whose transforms then share the loads of the
// matrix, and which stay in the L1 or L2 cache between the steps.
int64_t TokenSlice(const StoreHeadsArgs& args) {
  return std::max<int64_t>(1, 32 / std::max<int64_t>(1, args.heads));
}

int64_t TasksOf(const StoreHeadsArgs& args) {
  return (args.tokens + TokenSlice(args) - 1) / TokenSlice(args);
}

}  // namespace

void StoreHeads(std::span<const StoreHeadsArgs> items, ThreadPool& pool,
                const StoreHeadsKernel* kernel) noexcept {
  if (kernel == nullptr) kernel = BestKernel<StoreHeadsKernel>().kernel;
  int64_t tasks = 0;
  for (const StoreHeadsArgs& args : items) {
    FLATQUANT_CHECK(args.y != nullptr ||
                    (args.plane.heads == args.heads && args.plane.head_dim == args.head_dim &&
                     args.first_position + args.tokens <= args.plane.capacity));
    FLATQUANT_CHECK(args.cos == nullptr || args.head_dim % 2 == 0);
    FLATQUANT_CHECK(args.transform == nullptr || args.transform->right_size == args.head_dim);
    tasks += TasksOf(args);
  }
  pool.ParallelFor(static_cast<size_t>(tasks), 1, [&](size_t task, size_t) {
    auto rest = static_cast<int64_t>(task);
    for (const StoreHeadsArgs& args : items) {
      if (rest >= TasksOf(args)) {
        rest -= TasksOf(args);
        continue;
      }
      const int64_t begin = rest * TokenSlice(args);
      kernel->run(args, begin, std::min(args.tokens, begin + TokenSlice(args)));
      return;
    }
  });
}

}  // namespace flatquant
