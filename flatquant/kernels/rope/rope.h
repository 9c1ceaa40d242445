#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"

namespace flatquant {

// Rotary position embedding in Hugging Face's layout, in place: per token t and
// head, elements i and i + head_dim / 2 are a pair that turns by angle[t][i]:
//
//   x'[i]                = x[i] cos - x[i + head_dim / 2] sin
//   x'[i + head_dim / 2] = x[i + head_dim / 2] cos + x[i] sin
struct RopeArgs {
  float* x = nullptr;  // [tokens, heads, head_dim]
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;        // even
  const float* cos = nullptr;  // [tokens, head_dim / 2]
  const float* sin = nullptr;
};

struct RopeKernel {
  void (*run)(const RopeArgs& args, int64_t token_begin, int64_t token_end) noexcept;
};

void Rope(const RopeArgs& args, ThreadPool& pool) noexcept;

}  // namespace flatquant
