#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"

namespace flatquant {

// Causal attention of new tokens over the cache of their sequence, which already
// holds their K and V. Token t stands at position p = first_position + t; its head h
// reads KV head g = h / (heads / kv_heads):
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

// All query heads of one KV head, for some tokens, over some keys: what meets the
// same K and V. Its rows are numbered (token - token_begin) * group + head in group.
struct AttentionBlock {
  const AttentionArgs* args;
  int64_t kv_head;
  int64_t token_begin;
  int64_t token_end;
  int64_t key_begin;  // positions
  int64_t key_end;

  int64_t group() const { return args->heads / args->k.heads; }
  int64_t rows() const { return (token_end - token_begin) * group(); }
  int64_t keys() const { return key_end - key_begin; }
  // Of a row: its position, the first position that it sees, where its vector starts
  // in q and y.
  int64_t Position(int64_t row) const { return args->first_position + token_begin + row / group(); }
  int64_t First(int64_t row) const {
    return args->window > 0 ? std::max<int64_t>(0, Position(row) - args->window + 1) : 0;
  }
  int64_t Offset(int64_t row) const {
    const int64_t head = kv_head * group() + row % group();
    return ((token_begin + row / group()) * args->heads + head) * args->k.head_dim;
  }
};

// The softmax's sums over a block's keys, per row: the largest score, and relative
// to it the sum of exponentials and their sum times the values. A row that sees none
// of the keys has kAttentionLowest, 0 and zeros.
struct AttentionSums {
  float* top;     // [rows]
  float* total;   // [rows]
  float* values;  // [rows, head_dim]
};

// The lowest start of a running maximum: finite, so that differences are never
// infinity minus infinity.
inline constexpr float kAttentionLowest = -0x1p127f;

// Blocks of at most this many rows, as decoding has them, are cut by keys: then one
// sequence keeps many threads busy, whatever its number of heads.
inline constexpr int64_t kAttentionFewRows = 16;
// Keys of such a piece, at multiples of this position: sums depend on the context's
// length, never on the number of threads. 512 K and V vectors take some microseconds
// to read.
inline constexpr int64_t kAttentionSplitKeys = 512;

struct AttentionKernel {
  // Tokens of a block with many rows, given the query heads per KV head.
  int64_t (*token_slice)(int64_t group) noexcept;
  // Any number of rows and keys.
  void (*many_rows)(const AttentionBlock& block, const AttentionSums& sums) noexcept;
  // At most kAttentionFewRows rows and kAttentionSplitKeys keys.
  void (*few_rows)(const AttentionBlock& block, const AttentionSums& sums) noexcept;
  // What queries and the softmax's weights are rounded to before they are multiplied, 0
  // for floats: relative to the number itself, and, over integer caches, relative to the
  // largest number of its row, where K and V are nibbles and where one is bytes.
  double rounding = 0;
  double nibble_rounding = 0;
  double byte_rounding = 0;
};

// Several sequences in one parallel region. kernel: nullptr takes the best one.
void Attention(std::span<const AttentionArgs> batch, ThreadPool& pool,
               const AttentionKernel* kernel = nullptr) noexcept;

inline void Attention(const AttentionArgs& args, ThreadPool& pool,
                      const AttentionKernel* kernel = nullptr) noexcept {
  Attention(std::span(&args, 1), pool, kernel);
}

}  // namespace flatquant
