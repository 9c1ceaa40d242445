// Blocked attention with online softmax. A block of query rows (tokens x query
// heads of one KV head) meets tiles of keys; per row it carries the largest score
// so far, the sum of exponentials relative to it, and the weighted sum of values,
// and rescales the last two when a tile brings a larger score.
//
// Scores are held transposed, [keys, rows]: then neither K nor V needs a
// transposition, and maxima, exponentials and sums run along vector lanes.
#include <algorithm>
#include <cmath>
#include <limits>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/load_tile.h"
#include "flatquant/kernels/float_tile.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/vector_exp.h"

namespace flatquant {
namespace {

struct BlockTag {};

// Rows of a block and keys of a tile: multiples of both kTileRows and kTileCols.
// Scores (36 KB) and, at head_dim 128, queries, keys, values and outputs (48 KB
// each) stay in L2.
constexpr int64_t kBlockRows = 96;
constexpr int64_t kTileKeys = 96;
// With fewer rows than a tile of the matrix product has columns, plain dot
// products are faster: decoding a token.
constexpr int64_t kMatrixRows = kTileCols;

// The lowest start of a running maximum: finite, so that differences are never
// infinity minus infinity.
constexpr float kLowest = std::numeric_limits<float>::lowest() / 2;

// A block's rows are numbered t * group + g.
struct Block {
  const AttentionArgs& args;
  int64_t kv_head;
  int64_t group;
  int64_t token_begin;
  int64_t rows;

  int64_t Position(int64_t row) const { return args.first_position + token_begin + row / group; }
  // First position that a row sees.
  int64_t First(int64_t row) const {
    return args.window > 0 ? std::max<int64_t>(0, Position(row) - args.window + 1) : 0;
  }
  int64_t Offset(int64_t row) const {
    const int64_t head = kv_head * group + row % group;
    return ((token_begin + row / group) * args.heads + head) * args.k.head_dim;
  }
};

// scores [keys, rows_padded] for keys from `key` on: -infinity where a row does
// not see the key.
void Mask(const Block& block, int64_t key, int64_t keys, int64_t rows_padded, float* scores) {
  const bool all_seen = key + keys - 1 <= block.Position(0) && key >= block.First(block.rows - 1);
  if (all_seen) return;
  for (int64_t r = 0; r < block.rows; ++r) {
    const int64_t begin = std::clamp<int64_t>(block.First(r) - key, 0, keys);
    const int64_t end = std::clamp<int64_t>(block.Position(r) + 1 - key, 0, keys);
    for (int64_t j = 0; j < begin; ++j) scores[j * rows_padded + r] = -INFINITY;
    for (int64_t j = end; j < keys; ++j) scores[j * rows_padded + r] = -INFINITY;
  }
}

// Turns scores into exp(score - top), updates top and sum per row, and gives the
// factor by which what was summed so far shrinks.
void OnlineSoftmax(int64_t keys, int64_t rows, float* __restrict scores, float* __restrict top,
                   float* __restrict sum, float* __restrict shrink) {
  for (int64_t r = 0; r < rows; ++r) shrink[r] = top[r];
  for (int64_t j = 0; j < keys; ++j) {
    const float* row = scores + j * rows;
    for (int64_t r = 0; r < rows; ++r) top[r] = row[r] > top[r] ? row[r] : top[r];
  }
  for (int64_t r = 0; r < rows; ++r) {
    shrink[r] = VectorExp(shrink[r] - top[r]);
    sum[r] *= shrink[r];
  }
  for (int64_t j = 0; j < keys; ++j) {
    float* row = scores + j * rows;
    for (int64_t r = 0; r < rows; ++r) {
      row[r] = VectorExp(row[r] - top[r]);
      sum[r] += row[r];
    }
  }
}

void RunMatrix(const Block& block) {
  const AttentionArgs& args = block.args;
  const int64_t n = args.k.head_dim;
  const int64_t n_padded = PadToTile(n);
  const int64_t rows = PadToTile(block.rows);
  float* memory = ThreadScratch<BlockTag, float>(static_cast<size_t>(
      n * rows + kTileKeys * rows + 2 * kTileKeys * n_padded + rows * n_padded + 3 * rows));
  float* query = memory;                          // [n, rows]
  float* scores = query + n * rows;               // [keys, rows]
  float* keys = scores + kTileKeys * rows;        // [keys, n_padded]
  float* values = keys + kTileKeys * n_padded;    // [keys, n_padded]
  float* output = values + kTileKeys * n_padded;  // [rows, n_padded]
  float* top = output + rows * n_padded;          // [rows]
  float* sum = top + rows;                        // [rows]
  float* shrink = sum + rows;                     // [rows]
  std::fill(query, query + n * rows, 0.0f);
  std::fill(values, values + kTileKeys * n_padded, 0.0f);
  std::fill(output, output + rows * n_padded, 0.0f);
  std::fill(top, top + rows, kLowest);
  std::fill(sum, sum + rows, 0.0f);
  for (int64_t r = 0; r < block.rows; ++r) {
    const float* q = args.q + block.Offset(r);
    for (int64_t i = 0; i < n; ++i) query[i * rows + r] = q[i] * args.scale;
  }
  const int64_t end = block.Position(block.rows - 1) + 1;
  for (int64_t key = block.First(0); key < end; key += kTileKeys) {
    const int64_t count = std::min(kTileKeys, end - key);
    LoadTile(args.k, block.kv_head, key, key + count, keys, n_padded);
    LoadTile(args.v, block.kv_head, key, key + count, values, n_padded);
    MultiplySmall(count, rows, n, {keys, n_padded, 1}, query, rows, scores, rows, false);
    Mask(block, key, count, rows, scores);
    OnlineSoftmax(count, rows, scores, top, sum, shrink);
    for (int64_t r = 0; r < block.rows; ++r) {
      for (int64_t i = 0; i < n_padded; ++i) output[r * n_padded + i] *= shrink[r];
    }
    MultiplySmall(block.rows, n_padded, count, {scores, 1, rows}, values, n_padded, output,
                  n_padded, true);
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    float* y = args.y + block.Offset(r);
    const float inverse = 1.0f / sum[r];
    for (int64_t i = 0; i < n; ++i) y[i] = output[r * n_padded + i] * inverse;
  }
}

float Dot(const float* __restrict a, const float* __restrict b, int64_t n) {
  constexpr int64_t kLanes = 16;
  float lane[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t j = 0; j < kLanes; ++j) lane[j] += a[i + j] * b[i + j];
  }
  for (int64_t j = 0; i + j < n; ++j) lane[j] += a[i + j] * b[i + j];
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t j = 0; j < width; ++j) lane[j] += lane[j + width];
  }
  return lane[0];
}

void RunRowByRow(const Block& block) {
  const AttentionArgs& args = block.args;
  const int64_t n = args.k.head_dim;
  float* memory = ThreadScratch<BlockTag, float>(
      static_cast<size_t>(2 * kTileKeys * n + block.rows * n + kTileKeys));
  float* keys = memory;                     // [keys, n]
  float* values = keys + kTileKeys * n;     // [keys, n]
  float* output = values + kTileKeys * n;   // [rows, n]
  float* scores = output + block.rows * n;  // [keys]
  float top[kMatrixRows];
  float sum[kMatrixRows] = {};
  std::fill(top, top + block.rows, kLowest);
  std::fill(output, output + block.rows * n, 0.0f);
  const int64_t end = block.Position(block.rows - 1) + 1;
  for (int64_t key = block.First(0); key < end; key += kTileKeys) {
    const int64_t key_end = std::min(key + kTileKeys, end);
    LoadTile(args.k, block.kv_head, key, key_end, keys, n);
    LoadTile(args.v, block.kv_head, key, key_end, values, n);
    for (int64_t r = 0; r < block.rows; ++r) {
      const int64_t begin = std::max(key, block.First(r)) - key;
      const int64_t count = std::min(key_end, block.Position(r) + 1) - key;
      if (begin >= count) continue;
      const float* q = args.q + block.Offset(r);
      for (int64_t j = begin; j < count; ++j) scores[j] = Dot(q, keys + j * n, n) * args.scale;
      float shrink = 0;
      float new_top = top[r];
      for (int64_t j = begin; j < count; ++j) new_top = std::max(new_top, scores[j]);
      shrink = VectorExp(top[r] - new_top);
      top[r] = new_top;
      for (int64_t j = begin; j < count; ++j) scores[j] = VectorExp(scores[j] - new_top);
      sum[r] *= shrink;
      float* out = output + r * n;
      for (int64_t i = 0; i < n; ++i) out[i] *= shrink;
      for (int64_t j = begin; j < count; ++j) {
        sum[r] += scores[j];
        for (int64_t i = 0; i < n; ++i) out[i] += scores[j] * values[j * n + i];
      }
    }
  }
  for (int64_t r = 0; r < block.rows; ++r) {
    float* y = args.y + block.Offset(r);
    for (int64_t i = 0; i < n; ++i) y[i] = output[r * n + i] / sum[r];
  }
}

int64_t TokenSlice(int64_t group) noexcept { return std::max<int64_t>(1, kBlockRows / group); }

void Run(const AttentionArgs& args, int64_t kv_head, int64_t token_begin,
         int64_t token_end) noexcept {
  const int64_t group = args.heads / args.k.heads;
  const Block block = {args, kv_head, group, token_begin, (token_end - token_begin) * group};
  if (block.rows < kMatrixRows) {
    RunRowByRow(block);
  } else {
    RunMatrix(block);
  }
}

}  // namespace

extern const AttentionKernel kAttentionX86Avx2;
const AttentionKernel kAttentionX86Avx2 = {TokenSlice, Run};

}  // namespace flatquant
