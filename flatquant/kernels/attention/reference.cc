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

// The positions that a token sees.
struct Seen {
  int64_t first;
  int64_t last;
};

Seen SeenBy(const AttentionArgs& args, int64_t token) {
  const int64_t last = args.first_position + token;
  return {args.window > 0 ? std::max<int64_t>(0, last - args.window + 1) : 0, last};
}

// scores[first .. last] become weights that add up to 1.
void Softmax(float* scores, Seen seen) {
  float top = -INFINITY;
  for (int64_t j = seen.first; j <= seen.last; ++j) top = std::max(top, scores[j]);
  float sum = 0;
  for (int64_t j = seen.first; j <= seen.last; ++j) sum += scores[j] = std::exp(scores[j] - top);
  for (int64_t j = seen.first; j <= seen.last; ++j) scores[j] /= sum;
}

int64_t TokenSlice(int64_t) noexcept { return 16; }

// Every K and V vector of the task is widened once and meets all its rows.
void Run(const AttentionArgs& args, int64_t kv_head, int64_t token_begin,
         int64_t token_end) noexcept {
  const int64_t n = args.k.head_dim;
  const int64_t group = args.heads / args.k.heads;
  const int64_t rows = (token_end - token_begin) * group;
  const int64_t begin = SeenBy(args, token_begin).first;
  const int64_t end = SeenBy(args, token_end - 1).last + 1;
  float* vector = ThreadScratch<VectorTag, float>(static_cast<size_t>(n));
  float* scores = ThreadScratch<ScoreTag, float>(static_cast<size_t>(rows * end));
  const auto token = [&](int64_t row) { return token_begin + row / group; };
  const auto offset = [&](int64_t row) {
    return (token(row) * args.heads + kv_head * group + row % group) * n;
  };
  for (int64_t j = begin; j < end; ++j) {
    LoadVector(args.k, kv_head, j, vector);
    for (int64_t r = 0; r < rows; ++r) {
      const float* q = args.q + offset(r);
      float dot = 0;
      for (int64_t i = 0; i < n; ++i) dot += q[i] * vector[i];
      scores[r * end + j] = dot * args.scale;
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    Softmax(scores + r * end, SeenBy(args, token(r)));
    std::fill(args.y + offset(r), args.y + offset(r) + n, 0.0f);
  }
  for (int64_t j = begin; j < end; ++j) {
    LoadVector(args.v, kv_head, j, vector);
    for (int64_t r = 0; r < rows; ++r) {
      const Seen seen = SeenBy(args, token(r));
      if (j < seen.first || j > seen.last) continue;
      float* y = args.y + offset(r);
      const float weight = scores[r * end + j];
      for (int64_t i = 0; i < n; ++i) y[i] += weight * vector[i];
    }
  }
}

}  // namespace

extern const AttentionKernel kAttentionReference;
const AttentionKernel kAttentionReference = {TokenSlice, Run};

}  // namespace flatquant
