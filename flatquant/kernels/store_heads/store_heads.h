#pragma once

#include <cstdint>
#include <span>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"

namespace flatquant {

// What happens to Q, K and V between their linears and attention, in one pass over
// each token and head x [head_dim]:
//
//   x <- x / sqrt(mean(x^2) + norm_eps) * norm   where there is a norm (Qwen3)
//   x <- its rotation                            where there are angles
//   x <- x T                                     where there is a transform
//
// The rotation, in Hugging Face's layout, turns elements i and i + head_dim / 2 as a pair:
//
//   x'[i]                = x[i] cos[i] - x[i + head_dim / 2] sin[i]
//   x'[i + head_dim / 2] = x[i + head_dim / 2] cos[i] + x[i] sin[i]
//
// and then x becomes floats in y or is appended to the cache, as quantize_kv.h
// defines it.
struct StoreHeadsArgs {
  const float* x = nullptr;  // [tokens, heads, head_dim]
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;
  const float* norm = nullptr;  // [head_dim], or nullptr
  float norm_eps = 0;
  const float* cos = nullptr;  // [tokens, head_dim / 2], or nullptr; then head_dim is even
  const float* sin = nullptr;
  const KronTransform* transform = nullptr;  // its right factor is T; or nullptr
  float* y = nullptr;                        // [tokens, heads, head_dim], may be x; or nullptr:
  KvPlane plane;                             // the cache, of as many heads
  int64_t first_position = 0;                // first_position + tokens <= plane.capacity
  float clip_max = 1.0f;
  float clip_min = 1.0f;
};

struct StoreHeadsKernel {
  void (*run)(const StoreHeadsArgs& args, int64_t token_begin, int64_t token_end) noexcept;
};

// All items (Q, K and V, of one sequence or several) in one parallel region. kernel:
// nullptr takes the best one.
void StoreHeads(std::span<const StoreHeadsArgs> items, ThreadPool& pool,
                const StoreHeadsKernel* kernel = nullptr) noexcept;

}  // namespace flatquant
