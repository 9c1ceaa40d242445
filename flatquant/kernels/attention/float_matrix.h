#pragma once

#include <algorithm>
#include <cstdint>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/load_tile.h"
#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/float_tile.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/vector_exp.h"

// Many rows: online softmax over tiles of keys. Per row it carries the largest score
// so far, the sum of exponentials relative to it, and the weighted sum of values, and
// rescales the last two when a tile brings a larger score.
//
// Scores are held transposed, [keys, rows]: then neither K nor V needs a
// transposition, and maxima, exponentials and sums run along vector lanes.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

struct MatrixTag {};

// Rows of a block and keys of a tile. Scores (36 KB) and, at head_dim 128, queries,
// keys, values and outputs (48 KB each) stay in L2.
inline constexpr int64_t kBlockRows = 96;
inline constexpr int64_t kTileKeys = 96;

inline int64_t TokenSlice(int64_t group) noexcept {
  return std::max<int64_t>(1, kBlockRows / group);
}

// scores [keys, rows_padded] for keys from `key` on: -infinity where a row does not
// see the key.
inline void Mask(const AttentionBlock& block, int64_t key, int64_t keys, int64_t rows_padded,
                 float* scores) {
  const int64_t rows = block.rows();
  const bool all_seen = key + keys - 1 <= block.Position(0) && key >= block.First(rows - 1);
  if (all_seen) return;
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t begin = std::clamp<int64_t>(block.First(r) - key, 0, keys);
    const int64_t end = std::clamp<int64_t>(block.Position(r) + 1 - key, 0, keys);
    for (int64_t j = 0; j < begin; ++j) scores[j * rows_padded + r] = -INFINITY;
    for (int64_t j = end; j < keys; ++j) scores[j * rows_padded + r] = -INFINITY;
  }
}

// Turns scores [keys, rows] into exp(score - top), updates top and total per row, and
// gives the factor by which what was summed so far shrinks.
inline void OnlineSoftmax(int64_t keys, int64_t rows, float* scores, float* top, float* total,
                          float* shrink) {
  for (int64_t r = 0; r < rows; r += kLanes) {
    const Lanes old_top = LoadLanes(top + r);
    Lanes new_top = old_top;
    for (int64_t j = 0; j < keys; ++j) {
      new_top = MaxLanes(LoadLanes(scores + j * rows + r), new_top);
    }
    const Lanes factor = SoftmaxExpLanes(old_top - new_top);
    Lanes sum = LoadLanes(total + r) * factor;
    for (int64_t j = 0; j < keys; ++j) {
      const Lanes weight = SoftmaxExpLanes(LoadLanes(scores + j * rows + r) - new_top);
      sum = sum + weight;
      StoreLanes(scores + j * rows + r, weight);
    }
    StoreLanes(top + r, new_top);
    StoreLanes(total + r, sum);
    StoreLanes(shrink + r, factor);
  }
}

inline void RunManyRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  const AttentionArgs& args = *block.args;
  const int64_t n = args.k.head_dim;
  const int64_t n_padded = PadToTile(n);
  const int64_t block_rows = block.rows();
  const int64_t rows = PadToTile(block_rows);
  float* memory = ThreadScratch<MatrixTag, float>(static_cast<size_t>(
      n * rows + kTileKeys * rows + 2 * kTileKeys * n_padded + rows * n_padded + 3 * rows));
  float* query = memory;                          // [n, rows]
  float* scores = query + n * rows;               // [keys, rows]
  float* keys = scores + kTileKeys * rows;        // [keys, n_padded]
  float* values = keys + kTileKeys * n_padded;    // [keys, n_padded]
  float* output = values + kTileKeys * n_padded;  // [rows, n_padded]
  float* top = output + rows * n_padded;          // [rows]
  float* total = top + rows;                      // [rows]
  float* shrink = total + rows;                   // [rows]
  std::fill(query, query + n * rows, 0.0f);
  std::fill(values, values + kTileKeys * n_padded, 0.0f);
  std::fill(output, output + rows * n_padded, 0.0f);
  std::fill(top, top + rows, kAttentionLowest);
  std::fill(total, total + rows, 0.0f);
  for (int64_t r = 0; r < block_rows; ++r) {
    const float* q = args.q + block.Offset(r);
    for (int64_t i = 0; i < n; ++i) query[i * rows + r] = q[i] * args.scale;
  }
  for (int64_t key = block.key_begin; key < block.key_end; key += kTileKeys) {
    const int64_t count = std::min(kTileKeys, block.key_end - key);
    LoadTile(args.k, block.kv_head, key, key + count, keys, n_padded);
    LoadTile(args.v, block.kv_head, key, key + count, values, n_padded);
    MultiplySmall(count, rows, n, {keys, n_padded, 1}, query, rows, scores, rows, false);
    Mask(block, key, count, rows, scores);
    OnlineSoftmax(count, rows, scores, top, total, shrink);
    for (int64_t r = 0; r < block_rows; ++r) {
      float* out = output + r * n_padded;
      const Lanes factor = SetLanes(shrink[r]);
      for (int64_t i = 0; i < n_padded; i += kLanes) {
        StoreLanes(out + i, LoadLanes(out + i) * factor);
      }
    }
    MultiplySmall(block_rows, n_padded, count, {scores, 1, rows}, values, n_padded, output,
                  n_padded, true);
  }
  for (int64_t r = 0; r < block_rows; ++r) {
    std::copy(output + r * n_padded, output + r * n_padded + n, sums.values + r * n);
    sums.top[r] = top[r];
    sums.total[r] = total[r];
  }
}

}  // namespace
}  // namespace flatquant
