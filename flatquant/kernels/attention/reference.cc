#include <algorithm>
#include <cmath>

#include "flatquant/base/half.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct ScoreTag {};
struct VectorTag {};

float Element(const KvPlane& plane, const uint8_t* row, size_t vector, int64_t i) {
  switch (plane.format) {
    case KvFormat::kF32:
      return reinterpret_cast<const float*>(row)[i];
    case KvFormat::kBF16:
      return BF16ToFloat(reinterpret_cast<const uint16_t*>(row)[i]);
    case KvFormat::kNibble:
      return static_cast<float>((i % 2 == 0 ? row[i / 2] & 15 : row[i / 2] >> 4) -
                                plane.zero[vector]) *
             plane.scale[vector];
    case KvFormat::kByte:
      return static_cast<float>(row[i] - plane.zero[vector]) * plane.scale[vector];
  }
  return 0;
}

void LoadVector(const KvPlane& plane, int64_t head, int64_t position, float* out) {
  const size_t vector = static_cast<size_t>(head * plane.capacity + position);
  const uint8_t* row = plane.data + vector * KvRowBytes(plane.format, plane.head_dim);
  for (int64_t i = 0; i < plane.head_dim; ++i) out[i] = Element(plane, row, vector, i);
}

// scores[first .. last) become exp(score - top).
void Exponentials(float* scores, int64_t first, int64_t last, float* top, float* total) {
  *top = kAttentionLowest;
  *total = 0;
  for (int64_t j = first; j < last; ++j) *top = std::max(*top, scores[j]);
  for (int64_t j = first; j < last; ++j) *total += scores[j] = std::exp(scores[j] - *top);
}

int64_t TokenSlice(int64_t) noexcept { return 16; }

// Every K and V vector of the block is widened once and meets all its rows.
void Run(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  const AttentionArgs& args = *block.args;
  const int64_t n = args.k.head_dim;
  const int64_t rows = block.rows();
  const int64_t keys = block.keys();
  float* vector = ThreadScratch<VectorTag, float>(static_cast<size_t>(n));
  float* scores = ThreadScratch<ScoreTag, float>(static_cast<size_t>(rows * keys));
  for (int64_t j = 0; j < keys; ++j) {
    LoadVector(args.k, block.kv_head, block.key_begin + j, vector);
    for (int64_t r = 0; r < rows; ++r) {
      const float* q = args.q + block.Offset(r);
      float dot = 0;
      for (int64_t i = 0; i < n; ++i) dot += q[i] * vector[i];
      scores[r * keys + j] = dot * args.scale;
    }
  }
  // The keys that a row sees, counted from the block's first.
  const auto first = [&](int64_t r) {
    return std::clamp<int64_t>(block.First(r) - block.key_begin, 0, keys);
  };
  const auto last = [&](int64_t r) {
    return std::clamp<int64_t>(block.Position(r) + 1 - block.key_begin, 0, keys);
  };
  for (int64_t r = 0; r < rows; ++r) {
    Exponentials(scores + r * keys, first(r), last(r), sums.top + r, sums.total + r);
  }
  std::fill(sums.values, sums.values + rows * n, 0.0f);
  for (int64_t j = 0; j < keys; ++j) {
    LoadVector(args.v, block.kv_head, block.key_begin + j, vector);
    for (int64_t r = 0; r < rows; ++r) {
      if (j < first(r) || j >= last(r)) continue;
      const float weight = scores[r * keys + j];
      for (int64_t i = 0; i < n; ++i) sums.values[r * n + i] += weight * vector[i];
    }
  }
}

}  // namespace

extern const AttentionKernel kAttentionReference;
const AttentionKernel kAttentionReference = {TokenSlice, Run, Run};

}  // namespace flatquant
