#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "flatquant/kernels/amx_tiles.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/float_matrix.h"
#include "flatquant/kernels/attention/load_tile.h"
#include "flatquant/kernels/attention/transpose.h"
#include "flatquant/kernels/bf16_terms.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/vector_exp.h"

// Many rows on a tile unit that multiplies bfloat16: online softmax over tiles of keys,
// as float_matrix.h does it in float. The cache's side of both products is exact in
// bfloat16 (q - zero of at most 8 bits, or bfloat16 itself) and its scales multiply
// scores and weights instead; queries and weights are two bfloat16 terms, so that a
// product is two of the unit's. Templates over the unit: the tests run an emulated one.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

struct TileAttentionTag {};
struct TileTermsTag {};

// Two terms leave less than this of an operand.
inline constexpr double kTwoTermsRounding = 0x1p-16;

// Rows of a block and keys of a step, multiples of 32: scores and the weights' terms
// (64 KB each), queries, outputs and both operands from the cache stay in L2. More rows
// would share the cache's widening further, but waste products above the diagonal.
inline constexpr int64_t kTileRows = 128;
inline constexpr int64_t kStepKeys = 128;

inline int64_t TileTokenSlice(int64_t group) noexcept {
  return std::max<int64_t>(1, kTileRows / group);
}

constexpr int64_t PadTo32(int64_t n) { return (n + 31) / 32 * 32; }

// c [32, 32] (+ c_stride) = (a_high + a_low) b, over `steps` steps of 32 summands. a:
// rows `a_stride` elements apart. b: tiles of 512 elements, `b_step` elements from a
// step to the next and `b_right` to the right.
template <typename Tiles>
inline void MultiplyTerms(Tiles& tiles, int64_t steps, const uint16_t* a_high,
                          const uint16_t* a_low, int64_t a_stride, const uint16_t* b,
                          int64_t b_step, int64_t b_right, int64_t b_stride, float* c,
                          int64_t c_stride) {
  tiles.template Zero<0>();
  tiles.template Zero<1>();
  tiles.template Zero<2>();
  tiles.template Zero<3>();
  for (int64_t k = 0; k < steps; ++k) {
    tiles.template Load<6>(b + k * b_step, b_stride * 2);
    tiles.template Load<7>(b + k * b_step + b_right, b_stride * 2);
    for (const uint16_t* a : {a_high + k * 32, a_low + k * 32}) {
      tiles.template Load<4>(a, a_stride * 2);
      tiles.template Load<5>(a + 16 * a_stride, a_stride * 2);
      tiles.template DotBf16<0, 4, 6>();
      tiles.template DotBf16<1, 4, 7>();
      tiles.template DotBf16<2, 5, 6>();
      tiles.template DotBf16<3, 5, 7>();
    }
  }
  tiles.template Store<0>(c, c_stride * 4);
  tiles.template Store<1>(c + 16, c_stride * 4);
  tiles.template Store<2>(c + 16 * c_stride, c_stride * 4);
  tiles.template Store<3>(c + 16 * c_stride + 16, c_stride * 4);
}

// One block's memory and steps.
template <typename Tiles>
class TileAttention {
 public:
  TileAttention(const AttentionBlock& block, const AttentionSums& sums)
      : block_(block),
        sums_(sums),
        n_(block.args->k.head_dim),
        depth_(PadTo32(n_)),
        rows_(PadTo32(block.rows())) {
    float* memory = ThreadScratch<TileAttentionTag, float>(static_cast<size_t>(
        rows_ * kStepKeys + 2 * rows_ * depth_ + kStepKeys * depth_ + 2 * kStepKeys));
    scores_ = memory;
    output_ = scores_ + rows_ * kStepKeys;
    product_ = output_ + rows_ * depth_;
    widened_ = product_ + rows_ * depth_;
    k_scale_ = widened_ + kStepKeys * depth_;
    v_scale_ = k_scale_ + kStepKeys;
    uint16_t* terms = ThreadScratch<TileTermsTag, uint16_t>(
        static_cast<size_t>(2 * rows_ * depth_ + 2 * rows_ * kStepKeys + 3 * kStepKeys * depth_));
    query_ = terms;
    weight_ = query_ + 2 * rows_ * depth_;
    rounded_ = weight_ + 2 * rows_ * kStepKeys;
    keys_ = rounded_ + kStepKeys * depth_;
    values_ = keys_ + kStepKeys * depth_;
  }

  void Run() {
    SplitQueries();
    std::fill(output_, output_ + rows_ * depth_, 0.0f);
    std::fill(sums_.top, sums_.top + block_.rows(), kAttentionLowest);
    std::fill(sums_.total, sums_.total + block_.rows(), 0.0f);
    for (int64_t key = block_.key_begin; key < block_.key_end; key += kStepKeys) {
      Step(key, std::min(kStepKeys, block_.key_end - key));
    }
    for (int64_t r = 0; r < block_.rows(); ++r) {
      std::copy(output_ + r * depth_, output_ + r * depth_ + n_, sums_.values + r * n_);
    }
  }

 private:
  int64_t QueryTerms() const { return rows_ * depth_; }
  int64_t WeightTerms() const { return rows_ * kStepKeys; }

  void SplitQueries() {
    std::fill(output_, output_ + rows_ * depth_, 0.0f);
    for (int64_t r = 0; r < block_.rows(); ++r) {
      const float* q = block_.args->q + block_.Offset(r);
      for (int64_t i = 0; i < n_; ++i) output_[r * depth_ + i] = q[i] * block_.args->scale;
    }
    SplitRows<2>(output_, rows_, depth_, query_, query_ + QueryTerms());
  }

  // The vectors of keys [key, key + count) to widened_, zeros around them; their scales.
  void Widen(const KvPlane& plane, int64_t key, int64_t count, float* scale) {
    if (count < kStepKeys || n_ < depth_) {
      std::fill(widened_, widened_ + kStepKeys * depth_, 0.0f);
    }
    LoadTile<false>(plane, block_.kv_head, key, key + count, widened_, depth_);
    std::fill(scale, scale + kStepKeys, 1.0f);
    if (plane.format == KvFormat::kBF16) return;
    const float* scales = plane.scale + block_.kv_head * plane.capacity + key;
    std::copy(scales, scales + count, scale);
  }

  void Step(int64_t key, int64_t count) {
    Widen(block_.args->k, key, count, k_scale_);
    SplitRows<1>(widened_, kStepKeys, depth_, rounded_, rounded_);
    const int64_t steps = depth_ / 32;
    for (int64_t j = 0; j < kStepKeys; j += 16) {
      for (int64_t k = 0; k < steps; ++k) {
        TransposeWords(reinterpret_cast<const uint32_t*>(rounded_ + j * depth_ + k * 32),
                       depth_ / 2, reinterpret_cast<uint32_t*>(keys_ + (j * steps + k * 16) * 32));
      }
    }
    Widen(block_.args->v, key, count, v_scale_);
    SplitSummands<1>(widened_, kStepKeys, depth_, depth_, values_, values_);

    const int64_t padded = PadTo32(count);
    {
      Tiles tiles;
      for (int64_t r = 0; r < rows_; r += 32) {
        for (int64_t j = 0; j < padded; j += 32) {
          const uint16_t* high = query_ + r * depth_;
          MultiplyTerms(tiles, steps, high, high + QueryTerms(), depth_, keys_ + j * steps * 32,
                        512, steps * 512, 32, scores_ + r * kStepKeys + j, kStepKeys);
        }
      }
    }
    for (int64_t r = 0; r < block_.rows(); ++r) Softmax(r, key, count, padded);
    SplitRows<2>(scores_, rows_, kStepKeys, weight_, weight_ + WeightTerms());
    {
      Tiles tiles;
      for (int64_t r = 0; r < rows_; r += 32) {
        for (int64_t i = 0; i < depth_; i += 32) {
          const uint16_t* high = weight_ + r * kStepKeys;
          MultiplyTerms(tiles, padded / 32, high, high + WeightTerms(), kStepKeys, values_ + i * 2,
                        depth_ * 32, 32, depth_ * 2, product_ + r * depth_ + i, depth_);
        }
      }
    }
    for (int64_t i = 0; i < block_.rows() * depth_; i += kLanes) {
      StoreLanes(output_ + i, LoadLanes(output_ + i) + LoadLanes(product_ + i));
    }
  }

  // One row's scores become weights times V's scales, zero where it does not see the
  // key; its sums shrink to the new maximum.
  void Softmax(int64_t row, int64_t key, int64_t count, int64_t padded) {
    float* scores = scores_ + row * kStepKeys;
    const int64_t first = std::clamp<int64_t>(block_.First(row) - key, 0, count);
    const int64_t last = std::clamp<int64_t>(block_.Position(row) + 1 - key, first, count);
    for (int64_t j = 0; j < padded; j += kLanes) {
      StoreLanes(scores + j, LoadLanes(scores + j) * LoadLanes(k_scale_ + j));
    }
    std::fill(scores, scores + first, -INFINITY);
    std::fill(scores + last, scores + padded, -INFINITY);
    const float old_top = sums_.top[row];
    Lanes largest = SetLanes(old_top);
    for (int64_t j = 0; j < padded; j += kLanes) {
      largest = MaxLanes(LoadLanes(scores + j), largest);
    }
    const float top = LargestLane(largest);
    const Lanes tops = SetLanes(top);
    Lanes sum = SetLanes(0);
    for (int64_t j = 0; j < padded; j += kLanes) {
      const Lanes weight = SoftmaxExpLanes(LoadLanes(scores + j) - tops);
      sum = sum + weight;
      StoreLanes(scores + j, weight * LoadLanes(v_scale_ + j));
    }
    sums_.top[row] = top;
    if (top == old_top) {
      sums_.total[row] += SumOfLanes(sum);
      return;
    }
    const float shrink = VectorExp(old_top - top);
    sums_.total[row] = sums_.total[row] * shrink + SumOfLanes(sum);
    float* out = output_ + row * depth_;
    for (int64_t i = 0; i < depth_; i += kLanes) {
      StoreLanes(out + i, LoadLanes(out + i) * SetLanes(shrink));
    }
  }

  const AttentionBlock& block_;
  const AttentionSums& sums_;
  int64_t n_;       // head_dim
  int64_t depth_;   // head_dim in whole tiles
  int64_t rows_;    // the block's rows in whole tiles
  float* scores_;   // [rows, kStepKeys]
  float* output_;   // [rows, depth], before that the scaled queries
  float* product_;  // [rows, depth]
  float* widened_;  // [kStepKeys, depth]
  float* k_scale_;  // [kStepKeys]
  float* v_scale_;
  uint16_t* query_;    // two terms of [rows, depth]
  uint16_t* weight_;   // two terms of [rows, kStepKeys]
  uint16_t* rounded_;  // [kStepKeys, depth]
  uint16_t* keys_;     // [kStepKeys / 16][depth / 32] tiles
  uint16_t* values_;   // [kStepKeys / 32][16][depth] pairs
};

template <typename Tiles>
void RunTileRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  // Float caches keep float's precision.
  if (block.args->k.format == KvFormat::kF32 || block.args->v.format == KvFormat::kF32) {
    return RunManyRows(block, sums);
  }
  TileAttention<Tiles>(block, sums).Run();
}

}  // namespace
}  // namespace flatquant
