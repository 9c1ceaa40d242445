#include "flatquant/kernels/attention/attention.h"

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {

void Attention(const AttentionArgs& args, ThreadPool& pool,
               const AttentionKernel* kernel) noexcept {
  const int64_t kv_heads = args.k.heads;
  FLATQUANT_CHECK(kv_heads > 0 && args.heads % kv_heads == 0 && args.v.heads == kv_heads);
  FLATQUANT_CHECK(args.first_position + args.tokens <= args.k.capacity);
  if (kernel == nullptr) kernel = BestKernel<AttentionKernel>().kernel;
  const int64_t slice = kernel->token_slice(args.heads / kv_heads);
  const int64_t slices = (args.tokens + slice - 1) / slice;
  pool.ParallelFor(static_cast<size_t>(slices * kv_heads), 1, [&](size_t task, size_t) {
    // The last tokens see the most keys: started first, they do not end last.
    const int64_t token = (slices - 1 - static_cast<int64_t>(task) / kv_heads) * slice;
    kernel->run(args, static_cast<int64_t>(task) % kv_heads, token,
                std::min(args.tokens, token + slice));
  });
}

}  // namespace flatquant
