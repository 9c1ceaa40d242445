#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <numbers>

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/code_panels.h"
#include "flatquant/kernels/attention/fixed_point.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/unroll.h"

// Attention over an integer cache, in integers: online softmax over steps of keys.
// The cache's codes are bytes already (code_panels.h); what meets them, a query or a
// row's softmax weights times V's scales, becomes fixed point (fixed_point.h). Products
// of digits and codes are exact in int32, zero points included:
//
//   sum_i q[i] (code[i] - zero) = unit * (sum_i fixed[i] code[i] - zero sum_i fixed[i])
//
// A product of bytes, or two, does the work of four of floats that first have to be made
// from nibbles, and rows that share a KV head share the unpacked codes.
//
// Codes are a step's codes and how they are multiplied, with a group of rows at a time:
//
//   kRows, kDigits             rows of a group; digits of queries and weights
//   Codes(k, v)
//   Stage(key, count, v_zero, rows, weigh_lines, ahead)
//                              the step is to be of keys [key, key + count), for `rows` rows
//                              altogether; v_zero [kCodeKeys]: zero points, then zeros
//   MultiplyKeys(rows, queries, keys, products, ahead)
//                              products [kDigits rows, kCodeKeys] of digits
//                              [kDigits rows, depth] with keys, a multiple of 64, which
//                              beyond `count` may be anything
//   MultiplyValues(rows, weights, keys, products, ahead)
//                              products [kDigits rows, width] of digits
//                              [kDigits rows, kCodeKeys], which are zero from `keys` on
//
// Products are exact, in int32; digit d of row r is row kDigits r + d of digits and
// products, and rows up to kRows may be read and written. Meanwhile they ask memory for
// what is ahead: the cache's next vectors arrive while arithmetic runs.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

struct IntegerFloatsTag {};
struct IntegerPositionsTag {};
struct IntegerProductsTag {};
struct IntegerBytesTag {};

// Lines that a pair of rows asks for while it is weighed: memory is asked at an even pace,
// for a core holds few requests and waits when there are more.
inline constexpr int64_t kWeighLines = 16;

template <typename Codes>
class IntegerAttention {
  static constexpr int kRows = Codes::kRows;
  static constexpr int kDigits = Codes::kDigits;

  // Keys that a row sees: [first, last).
  struct Seen {
    int64_t first;
    int64_t last;
  };

 public:
  IntegerAttention(const AttentionBlock& block, const AttentionSums& sums)
      : block_(block),
        sums_(sums),
        k_(block.args->k, block.kv_head, block.key_begin),
        v_(block.args->v, block.kv_head, block.key_begin),
        depth_(k_.codes()),
        width_(v_.codes()),
        codes_(k_, v_) {
    const int64_t rows = block.rows();
    const int64_t padded = rows + kRows;
    float* floats = ThreadScratch<IntegerFloatsTag, float>(
        static_cast<size_t>(rows * (width_ + 16 + 2) + 3 * kCodeKeys + std::max(depth_, width_)));
    output_ = floats;
    totals_ = output_ + rows * width_;
    k_zero_ = totals_ + rows * 16;
    k_scale_ = k_zero_ + kCodeKeys;
    v_scale_ = k_scale_ + kCodeKeys;
    ordered_ = v_scale_ + kCodeKeys;
    unit_ = ordered_ + std::max(depth_, width_);
    query_total_ = unit_ + rows;
    positions_ = ThreadScratch<IntegerPositionsTag, Seen>(static_cast<size_t>(rows));
    products_ = ThreadScratch<IntegerProductsTag, int32_t>(
        static_cast<size_t>(kRows * kDigits * std::max(width_, kCodeKeys)));
    uint8_t* bytes = ThreadScratch<IntegerBytesTag, uint8_t>(
        static_cast<size_t>(padded * kDigits * depth_ + kRows * kDigits * kCodeKeys + kCodeKeys));
    queries_ = bytes;
    weights_ = queries_ + padded * kDigits * depth_;
    v_zero_ = weights_ + kRows * kDigits * kCodeKeys;
  }

  void Run() {
    // The first vectors arrive while the queries are split.
    AskForScales(0);
    AskFor(k_.data, kCodeKeys * k_.row_bytes);
    AskFor(v_.data, kCodeKeys * v_.row_bytes);
    SplitQueries();
    const int64_t rows = block_.rows();
    std::fill(output_, output_ + rows * width_, 0.0f);
    std::fill(totals_, totals_ + rows * 16, 0.0f);
    std::fill(sums_.top, sums_.top + rows, kAttentionLowest);
    for (int64_t key = 0; key < block_.keys(); key += kCodeKeys) {
      const int64_t count = std::min(kCodeKeys, block_.keys() - key);
      const int64_t next = key + kCodeKeys;
      ahead_ = {k_.data + next * k_.row_bytes, k_.data + (next + kCodeKeys) * k_.row_bytes,
                v_.data + next * v_.row_bytes, v_.data + (next + kCodeKeys) * v_.row_bytes};
      Stage(key, count);
      for (int64_t row = 0; row < rows; row += kRows) {
        Group(row, std::min<int64_t>(kRows, rows - row), key, count);
      }
    }
    for (int64_t r = 0; r < rows; ++r) {
      sums_.total[r] = _mm512_reduce_add_ps(_mm512_loadu_ps(totals_ + 16 * r));
      if (sums_.top[r] != kAttentionLowest) sums_.top[r] *= std::numbers::ln2_v<float>;
      FromValueOrder(v_, output_ + r * width_, ordered_);
      std::copy(ordered_, ordered_ + v_.elements, sums_.values + r * v_.elements);
    }
  }

 private:
  // Scores are counted in powers of two: sums_.top, too, until the end.
  void SplitQueries() {
    const float scale = block_.args->scale * std::numbers::log2e_v<float>;
    for (int64_t r = 0; r < block_.rows(); ++r) {
      const float* q = block_.args->q + block_.Offset(r);
      ToKeyOrder(k_, q, ordered_);
      const FixedQuery query =
          QueryDigits<kDigits>(ordered_, depth_, queries_ + r * kDigits * depth_);
      positions_[r] = {block_.First(r), block_.Position(r) + 1};
      unit_[r] = query.unit * scale;
      query_total_[r] = query.total;
    }
  }

  void AskForScales(int64_t key) const {
    AskFor(k_.scale + key, kCodeKeys * 4);
    AskFor(v_.scale + key, kCodeKeys * 4);
    AskFor(k_.zero + key, kCodeKeys);
    AskFor(v_.zero + key, kCodeKeys);
  }

  // Keys [key, key + count) of the block's and zeros up to the next multiple of 64.
  void Stage(int64_t key, int64_t count) {
    const int64_t padded = (count + 63) / 64 * 64;
    AskForScales(key + kCodeKeys);
    // Copies, because bytes that are written might be these for all the compiler knows.
    const float* const k_scale = k_.scale + key;
    const float* const v_scale = v_.scale + key;
    const uint8_t* const k_zero = k_.zero + key;
    const uint8_t* const v_zero = v_.zero + key;
    float* const k_zeros = k_zero_;
    float* const k_scales = k_scale_;
    float* const v_scales = v_scale_;
    uint8_t* const v_zeros = v_zero_;
    for (int64_t i = 0; i < padded; i += 16) {
      const __mmask16 lanes = FirstLanes(std::clamp<int64_t>(count - i, 0, 16));
      const __m128i zero = _mm_maskz_loadu_epi8(lanes, k_zero + i);
      _mm512_storeu_ps(k_zeros + i, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(zero)));
      _mm512_storeu_ps(k_scales + i, _mm512_maskz_loadu_ps(lanes, k_scale + i));
      _mm512_storeu_ps(v_scales + i, _mm512_maskz_loadu_ps(lanes, v_scale + i));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(v_zeros + i),
                       _mm_maskz_loadu_epi8(lanes, v_zero + i));
    }
    codes_.Stage(key, count, v_zero_, block_.rows(), block_.rows() / 2 * kWeighLines, ahead_);
  }

  // What `count` staged keys add to rows [row, row + n).
  void Group(int64_t row, int64_t n, int64_t key, int64_t count) {
    const int64_t first_key = block_.key_begin + key;
    const int64_t seen = std::min(count, positions_[row + n - 1].last - first_key);
    if (seen <= 0 || positions_[row].first - first_key >= count) return;
    const int64_t padded = (seen + 63) / 64 * 64;
    codes_.MultiplyKeys(n, queries_ + row * kDigits * depth_, padded, products_, ahead_);
    int64_t r = 0;
    for (; r + 2 <= n; r += 2) WeighRows<2>(row, r, first_key, seen, padded);
    if (r < n) WeighRows<1>(row, r, first_key, seen, padded);
    codes_.MultiplyValues(n, weights_, seen, products_, ahead_);
    for (r = 0; r < n; ++r) {
      const __m512 bias = _mm512_set1_ps(v_.is_nibble ? 0.0f : BiasOfBytes(r, padded));
      const __m512 shrink = _mm512_set1_ps(shrink_[r]);
      const __m512 unit = _mm512_set1_ps(weight_unit_[r]);
      const int32_t* product = products_ + r * kDigits * width_;
      float* out = output_ + (row + r) * width_;
      for (int64_t i = 0; i < width_; i += 16) {
        const __m512 sum = FromDigits<kDigits>(product + i, width_) - bias;
        _mm512_storeu_ps(out + i, _mm512_fmadd_ps(sum, unit, _mm512_loadu_ps(out + i) * shrink));
      }
    }
  }

  // Rows r .. r + kSome - 1 of a group that begins at `row`.
  template <int kSome>
  void WeighRows(int64_t row, int64_t r, int64_t first_key, int64_t keys, int64_t padded) {
    Seen seen[kSome];
    bool is_masked = false;
    for (int64_t i = 0; i < kSome; ++i) {
      const int64_t number = row + r + i;
      seen[i].first = std::clamp<int64_t>(positions_[number].first - first_key, 0, keys);
      seen[i].last = std::clamp<int64_t>(positions_[number].last - first_key, seen[i].first, keys);
      is_masked |= seen[i].first > 0 || seen[i].last < padded;
    }
    if (padded == kCodeKeys) {
      is_masked ? Weigh<kSome, 8, true>(row, r, seen) : Weigh<kSome, 8, false>(row, r, seen);
    } else {
      is_masked ? Weigh<kSome, 4, true>(row, r, seen) : Weigh<kSome, 4, false>(row, r, seen);
    }
  }

  // The rows' products with 16 kVectors keys become the digits of their weights times V's
  // scales, with kIsMasked zero where a key is not seen. What was summed so far is to be
  // multiplied with shrink_, what is added with weight_unit_. Two rows at once, for the
  // way from a row's products to its weights is long.
  template <int kSome, int kVectors, bool kIsMasked>
  void Weigh(int64_t row, int64_t r, const Seen (&seen)[kSome]) {
    const int32_t* products = products_ + r * kDigits * kCodeKeys;
    __m512 x[kSome][kVectors];
    __m512 query_total[kSome];
    Unroll<kSome>([&](auto s) { query_total[s] = _mm512_set1_ps(query_total_[row + r + s]); });
    Unroll<kVectors>([&](auto i) {  // scores, in query units
      const __m512 zero = _mm512_loadu_ps(k_zero_ + 16 * i);
      const __m512 scale = _mm512_loadu_ps(k_scale_ + 16 * i);
      Unroll<kSome>([&](auto s) {
        const __m512 dot =
            FromDigits<kDigits>(products + s * kDigits * kCodeKeys + 16 * i, kCodeKeys);
        x[s][i] = _mm512_fnmadd_ps(zero, query_total[s], dot) * scale;
        if constexpr (kIsMasked) {
          const auto lane = [&](int64_t j) { return std::clamp<int64_t>(j - 16 * i, 0, 16); };
          const auto lanes =
              static_cast<__mmask16>((1u << lane(seen[s].last)) - (1u << lane(seen[s].first)));
          x[s][i] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), lanes, x[s][i]);
        }
      });
    });
    __m512 tops[kSome];
    __m512 units[kSome];
    __m512 total[kSome];
    __m512i most[kSome];
    Unroll<kSome>([&](auto s) {
      const int64_t number = row + r + s;
      __m512 largest = x[s][0];
      Unroll<kVectors - 1>([&](auto i) { largest = _mm512_max_ps(largest, x[s][i + 1]); });
      const float old_top = sums_.top[number];
      const float top = std::max(old_top, _mm512_reduce_max_ps(largest) * unit_[number]);
      tops[s] = _mm512_set1_ps(top);
      units[s] = _mm512_set1_ps(unit_[number]);
      total[s] = _mm512_setzero_ps();
      most[s] = _mm512_setzero_si512();
      shrink_[r + s] = old_top - top;
      sums_.top[number] = top;
    });
    const uint8_t* asked = ahead_.next();
    const int64_t step = ahead_.step();
    Unroll<kVectors>([&](auto i) {
      if constexpr (kSome == 2) {
        AskFor(asked, 64);
        AskFor(asked + step, 64);
        asked += 2 * step;
      }
      const __m512 scale = _mm512_loadu_ps(v_scale_ + 16 * i);
      Unroll<kSome>([&](auto s) {
        const __m512 weight =
            SoftmaxPowerOfTwo<kDigits>(_mm512_fmsub_ps(x[s][i], units[s], tops[s]));
        total[s] = total[s] + weight;
        x[s][i] = weight * scale;
        most[s] = _mm512_max_epu32(most[s], _mm512_castps_si512(x[s][i]));
      });
    });
    if constexpr (kSome == 2) ahead_.Skip(2 * kVectors);
    Unroll<kSome>([&](auto s) {
      const float heaviest = std::bit_cast<float>(_mm512_reduce_max_epu32(most[s]));
      const __m512 factor = _mm512_set1_ps(FixedFactor(heaviest, kWeightMax<kDigits>));
      uint8_t* digits = weights_ + (r + s) * kDigits * kCodeKeys;
      Unroll<kVectors / 4>([&](auto i) {
        const __m512 four[4] = {x[s][4 * i] * factor, x[s][4 * i + 1] * factor,
                                x[s][4 * i + 2] * factor, x[s][4 * i + 3] * factor};
        WeightDigits<kDigits>(four, digits + 64 * i, kCodeKeys);
      });
      weight_unit_[r + s] = FixedUnit(heaviest, kWeightMax<kDigits>);
      const __m512 shrink = SoftmaxPowerOfTwo<2>(_mm512_set1_ps(shrink_[r + s]));
      shrink_[r + s] = _mm512_cvtss_f32(shrink);
      float* totals = totals_ + 16 * (row + r + s);
      _mm512_storeu_ps(totals, _mm512_fmadd_ps(_mm512_loadu_ps(totals), shrink, total[s]));
    });
  }

  // sum_j fixed[j] (zero[j] - 128) of a row's weights: code - 128 was multiplied.
  float BiasOfBytes(int64_t r, int64_t keys) const {
    const uint8_t* digits = weights_ + r * kDigits * kCodeKeys;
    __m512i sum[kDigits] = {};
    for (int64_t j = 0; j < keys; j += 64) {
      const __m512i zeros =
          _mm512_xor_si512(_mm512_loadu_si512(v_zero_ + j), _mm512_set1_epi8(-128));
      for (int64_t d = 0; d < kDigits; ++d) {
        sum[d] = _mm512_dpbusd_epi32(sum[d], _mm512_loadu_si512(digits + d * kCodeKeys + j), zeros);
      }
    }
    alignas(64) int32_t sums[kDigits * 16];
    for (int64_t d = 0; d < kDigits; ++d) _mm512_store_si512(sums + 16 * d, sum[d]);
    return _mm512_reduce_add_ps(FromDigits<kDigits>(sums, 16));
  }

  const AttentionBlock& block_;
  const AttentionSums& sums_;
  CodeRows k_;
  CodeRows v_;
  int64_t depth_;       // of a staged K vector
  int64_t width_;       // of a staged V vector
  float* output_;       // [rows, width], in the order of the panels' columns
  float* totals_;       // [rows, 16], to be added up
  float* k_zero_;       // [kCodeKeys]
  float* k_scale_;      // [kCodeKeys]
  float* v_scale_;      // [kCodeKeys]
  float* ordered_;      // [depth] or [width]
  float* unit_;         // [rows], of queries, with the scale of scores
  float* query_total_;  // [rows]
  Seen* positions_;     // [rows]
  int32_t* products_;   // [kRows, kDigits, kCodeKeys] of keys, or [.., width] of values
  uint8_t* queries_;    // [rows + kRows, kDigits, depth]
  uint8_t* weights_;    // [kRows, kDigits, kCodeKeys]
  uint8_t* v_zero_;     // [kCodeKeys]
  // Of a group's rows, see Weigh.
  float shrink_[kRows];
  float weight_unit_[kRows];
  Codes codes_;
  Ahead ahead_ = {};
};

inline bool IsInteger(const KvPlane& plane) {
  return plane.format == KvFormat::kNibble || plane.format == KvFormat::kByte;
}

inline bool IsInteger(const AttentionBlock& block) {
  return IsInteger(block.args->k) && IsInteger(block.args->v);
}

// For caches of integers.
template <typename Multiplier>
void RunInteger(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  const bool is_nibble =
      block.args->k.format == KvFormat::kNibble && block.args->v.format == KvFormat::kNibble;
  if (is_nibble) {
    IntegerAttention<CodePanels<Multiplier, 1>>(block, sums).Run();
  } else {
    IntegerAttention<CodePanels<Multiplier, 2>>(block, sums).Run();
  }
}

}  // namespace
}  // namespace flatquant
