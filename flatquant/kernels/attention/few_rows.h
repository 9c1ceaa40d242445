#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/vector_exp.h"

// The frame of a block with few rows: scores of all its keys, their exponentials,
// the weighted sum of values. How K and V are read is the includer's matter.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Elements of a row of scores: a multiple of every vector, and not a power of two,
// so that rows do not compete for the same lines of the cache.
inline constexpr int64_t kScoreStride = kAttentionSplitKeys + 64;

// A cached vector is read while the arithmetic of the ones before it runs: asked for
// this many bytes ahead, some hundred nanoseconds, its lines arrive in time. The
// hardware's own prefetchers stop at each page.
inline constexpr int64_t kPrefetchBytes = 4096;
inline void Prefetch(const uint8_t* p) {
  _mm_prefetch(reinterpret_cast<const char*>(p) + kPrefetchBytes, _MM_HINT_T0);
}

// One row's scores [keys] become exp(score - top), zero up to the next multiple of
// 64 keys and where the row does not see the key.
inline void Exponentials(const AttentionBlock& block, int64_t row, float* scores, float* top,
                         float* total) {
  const int64_t keys = block.keys();
  const int64_t first = std::clamp<int64_t>(block.First(row) - block.key_begin, 0, keys);
  const int64_t last = std::clamp<int64_t>(block.Position(row) + 1 - block.key_begin, first, keys);
  std::fill(scores, scores + first, -INFINITY);
  std::fill(scores + last, scores + (keys + 63) / 64 * 64, -INFINITY);
  Lanes largest = SetLanes(kAttentionLowest);
  for (int64_t j = 0; j < last; j += kLanes) {
    largest = MaxLanes(largest, LoadLanes(scores + j));
  }
  *top = LargestLane(largest);
  const Lanes tops = SetLanes(*top);
  Lanes sum = SetLanes(0);
  for (int64_t j = 0; j < (keys + 63) / 64 * 64; j += kLanes) {
    const Lanes weight = SoftmaxExpLanes(LoadLanes(scores + j) - tops);
    sum = sum + weight;
    StoreLanes(scores + j, weight);
  }
  *total = SumOfLanes(sum);
}

}  // namespace
}  // namespace flatquant
