#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"

namespace flatquant {

// Causal attention of new tokens over the cache, which already holds their K and
// V. Token t stands at position p = first_position + t; its head h reads KV head
// g = h / (heads / kv_heads):
//
//   y[t][h] = sum_j softmax_j(scale * q[t][h] . k[g][j]) v[g][j]
//
// over j in [0, p], or [p - window + 1, p] with a sliding window.
struct AttentionArgs {
  const float* q = nullptr;  // [tokens, heads, head_dim]
  int64_t tokens = 0;
  int64_t first_position = 0;
  int64_t heads = 0;   // a multiple of the planes' heads
  int64_t window = 0;  // positions that a token sees, itself included; 0: all
  float scale = 1.0f;  // usually 1 / sqrt(head_dim)
  KvPlane k;           // equal heads, head_dim, capacity; formats may differ
  KvPlane v;
  float* y = nullptr;  // [tokens, heads, head_dim]
};

// A task is a KV head and a range of tokens, with all query heads of that group.
struct AttentionKernel {
  // Tokens of a task, given the number of query heads per KV head.
  int64_t (*token_slice)(int64_t group) noexcept;
  void (*run)(const AttentionArgs& args, int64_t kv_head, int64_t token_begin,
              int64_t token_end) noexcept;
};

// kernel: nullptr takes the best one.
void Attention(const AttentionArgs& args, ThreadPool& pool,
               const AttentionKernel* kernel = nullptr) noexcept;

}  // namespace flatquant
