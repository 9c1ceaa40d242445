#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "flatquant/base/half.h"
#include "flatquant/compress/ops/exp.h"

// The elementwise half of blocked attention, on one block of logits: `rows`
// queries by `columns` keys, row-major. T is the operand type of the matrix
// products around it: float, or uint16_t for bfloat16.
namespace flatquant::compress {

inline void StoreOperand(float value, float* to) { *to = value; }
inline void StoreOperand(float value, uint16_t* to) { *to = FloatToBF16(value); }

// Which columns of a row are visible: [begin, end).
struct Visible {
  int64_t begin, end;
};

// For query position `query` and a block of keys that starts at position `key`.
inline Visible VisibleColumns(int64_t query, int64_t key, int64_t columns, int64_t window) {
  const int64_t end = std::clamp<int64_t>(query + 1 - key, 0, columns);
  const int64_t begin = window > 0 ? std::clamp<int64_t>(query - window + 1 - key, 0, end) : 0;
  return {begin, end};
}

// Zeroes what is not visible.
template <typename T>
void ClearHidden(T* row, int64_t columns, Visible visible) {
  std::memset(row, 0, sizeof(T) * visible.begin);
  std::memset(row + visible.end, 0, sizeof(T) * (columns - visible.end));
}

// Running maximum (of scaled logits) and sum of exponentials of one query.
struct SoftmaxState {
  float max = -1e30f;
  float sum = 0;
};

// p = exp(scale * logits - max) over the visible part of one row, with the
// running state brought up to date. Returns the factor by which everything
// summed so far shrinks.
template <typename T>
float SoftmaxRow(const float* logits, int64_t columns, Visible visible, float scale,
                 SoftmaxState& state, T* p) {
  ClearHidden(p, columns, visible);
  if (visible.begin == visible.end) return 1.0f;
  float max = logits[visible.begin];
#pragma omp simd reduction(max : max)
  for (int64_t j = visible.begin; j < visible.end; ++j) max = logits[j] > max ? logits[j] : max;
  max = std::max(max * scale, state.max);
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const float e = FastExp(logits[j] * scale - max);
    sum += e;
    StoreOperand(e, p + j);
  }
  const float shrink = FastExp(state.max - max);
  state.sum = state.sum * shrink + sum;
  state.max = max;
  return shrink;
}

// One row of backward: p = exp(scale * logits - lse), dlogits = scale p (dp -
// delta), where delta = sum_j p_j dp_j over the whole row.
template <typename T>
void SoftmaxRowBackward(const float* logits, const float* dp, int64_t columns, Visible visible,
                        float scale, float lse, float delta, T* p, T* dlogits) {
  ClearHidden(p, columns, visible);
  ClearHidden(dlogits, columns, visible);
#pragma omp simd
  for (int64_t j = visible.begin; j < visible.end; ++j) {
    const float e = FastExp(logits[j] * scale - lse);
    StoreOperand(e, p + j);
    StoreOperand(scale * e * (dp[j] - delta), dlogits + j);
  }
}

}  // namespace flatquant::compress
