#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "flatquant/kernels/attention/few_rows.h"
#include "flatquant/kernels/attention/transpose.h"
#include "flatquant/kernels/scratch.h"

// Few rows over an integer cache, in integers. The cache's codes are bytes already;
// what meets them, a query or a row's weights x, becomes fixed point of 24 bits:
//
//   x = unit * (d2 2^16 + d1 2^8 + d0),  unit = max |x| / 8355700
//
// with digits d in [-128, 127], so that an element is off by at most 2^-24 of the
// largest. Products of digits and codes are exact in int32, zero points included:
//
//   sum_i x[i] (code[i] - zero) = unit * sum_d 2^(8 d) (sum_i digit_d[i] code[i]
//                                                       - zero sum_i digit_d[i])
//
// Three products of bytes do the work of four of floats that first have to be made
// from nibbles.
//
// Codes are staged, unpacked, in panels of 16 columns: [depth / 4][16][4] bytes, as
// byte products want them. For scores a column is a key and depth runs along its
// elements; for values a column is an element and depth runs along keys.
//
// A Multiplier supplies
//
//   Run(rows, depth, digits, stride, b, panels, panel_stride, c, c_stride, accumulate)
//
// which computes c [rows, 16 panels] (float) = (accumulate ? c : 0) + sum_d 2^(8 d) a_d b
// with row 3 r + d of `digits` (int8, `stride` bytes long) being digit d of row r,
// depth a multiple of 64; and PaddedRows(rows), the rows of digits that it reads.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

inline constexpr int64_t kDigits = 3;
// Digits reach 127 (2^16 + 2^8 + 1) = 8355711; some less, for the roundings before.
inline constexpr float kFixedMax = 8355700.0f;
// Below it, unit's reciprocal would overflow; such a row of queries has scores of 0.
inline constexpr float kSmallest = 0x1p-100f;

// Largest |x[i]| of n floats (a multiple of 16), a NaN or infinity if there is one.
inline float LargestMagnitude(const float* x, int64_t n) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 16) {
    largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
  }
  return std::bit_cast<float>(_mm512_reduce_max_epu32(largest));
}

struct FixedPoint {
  float unit;
  float total;  // of all elements, in units
};

// x [n] (n a multiple of 16) to its digits [3][stride].
inline FixedPoint ToFixedPoint(const float* x, int64_t n, int8_t* digits, int64_t stride) {
  const float largest = LargestMagnitude(x, n);
  const __m512 factor = _mm512_set1_ps(largest > kSmallest ? kFixedMax / largest : 0.0f);
  const __m512i half = _mm512_set1_epi32(128);
  __m512 total = _mm512_setzero_ps();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i fixed = _mm512_cvtps_epi32(_mm512_loadu_ps(x + i) * factor);
    const __m512i middle = _mm512_srai_epi32(_mm512_add_epi32(fixed, half), 8);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(middle, half), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + i), _mm512_cvtepi32_epi8(fixed));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + stride + i), _mm512_cvtepi32_epi8(middle));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + 2 * stride + i),
                     _mm512_cvtepi32_epi8(high));
    total = total + _mm512_cvtepi32_ps(fixed);
  }
  return {largest / kFixedMax, _mm512_reduce_add_ps(total)};
}

// The number that three sums of digits' products stand for, without its unit.
inline __m512 FromDigits(__m512i low, __m512i middle, __m512i high) {
  const __m512 base = _mm512_set1_ps(256.0f);
  const __m512 upper = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), base, _mm512_cvtepi32_ps(middle));
  return _mm512_fmadd_ps(upper, base, _mm512_cvtepi32_ps(low));
}

// How a KV head's vectors lie in memory and in panels.
struct CodeRows {
  const uint8_t* data;  // the first vector
  const float* scale;   // [vectors]
  const uint8_t* zero;  // [vectors]
  int64_t row_bytes;
  int64_t elements;
  bool is_nibble;
  int64_t words;  // 32-bit words of a staged vector: 8, or a multiple of 16

  CodeRows(const KvPlane& plane, int64_t head, int64_t begin) {
    const int64_t first = head * plane.capacity + begin;
    row_bytes = static_cast<int64_t>(KvRowBytes(plane.format, plane.head_dim));
    elements = plane.head_dim;
    is_nibble = plane.format == KvFormat::kNibble;
    words = row_bytes <= 32 && is_nibble ? 8 : (row_bytes + 63) / 64 * 16;
    data = plane.data + first * row_bytes;
    scale = plane.scale + first;
    zero = plane.zero + first;
  }
  // Bytes of a staged vector: nibbles take one each.
  int64_t codes() const { return words * (is_nibble ? 8 : 4); }
  // Which of a vector's bytes [0, 32), or [64 piece, 64 piece + 64), there are.
  __mmask32 Mask32() const { return static_cast<__mmask32>((uint64_t{1} << row_bytes) - 1); }
  __mmask64 Mask64(int64_t piece) const {
    const int64_t rest = row_bytes - 64 * piece;
    return rest >= 64 ? ~__mmask64{0} : (__mmask64{1} << rest) - 1;
  }
};

inline __m512i LowNibbles(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i HighNibbles(__m512i bytes) {
  return _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
}

// Writes a transposed word of 16 keys, number `word` of the vector, to the key panel.
inline void StoreKeyWord(const CodeRows& rows, __m512i keys, int64_t word, uint8_t* panel) {
  if (rows.is_nibble) {
    _mm512_store_si512(panel + word * 128, LowNibbles(keys));
    _mm512_store_si512(panel + word * 128 + 64, HighNibbles(keys));
  } else {
    _mm512_store_si512(panel + word * 64, keys);
  }
}

// Walks over vectors; past the last one it stays there.
class RowPointer {
 public:
  RowPointer(const CodeRows& rows, int64_t begin, int64_t count)
      : row_(rows.data + begin * rows.row_bytes),
        last_(rows.data + (count - 1) * rows.row_bytes),
        step_(rows.row_bytes) {
    row_ = std::min(row_, last_);
  }
  const uint8_t* Next() {
    const uint8_t* row = row_;
    Prefetch(row);
    row_ += row_ < last_ ? step_ : 0;
    return row;
  }

 private:
  const uint8_t* row_;
  const uint8_t* last_;
  int64_t step_;
};

// Stages keys [begin, begin + 64) of `count` as four panels of columns; keys past the
// end repeat the last one.
inline void StageKeys(const CodeRows& rows, int64_t begin, int64_t count, uint8_t* panels) {
  const int64_t panel_bytes = rows.codes() * 16;
  __m512i m[16];
  if (rows.words == 8) {  // 32 bytes or less: keys 16 apart share a register
    const __mmask32 mask = rows.Mask32();
    for (int64_t half = 0; half < 2; ++half) {
      RowPointer low(rows, begin + 32 * half, count);
      RowPointer high(rows, begin + 32 * half + 16, count);
      for (auto& both : m) {
        both = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_maskz_loadu_epi8(mask, low.Next())),
                                  _mm256_maskz_loadu_epi8(mask, high.Next()), 1);
      }
      Transpose(m);
      uint8_t* panel = panels + 2 * half * panel_bytes;
      for (int64_t w = 0; w < 8; ++w) {
        StoreKeyWord(rows, m[w], w, panel);
        StoreKeyWord(rows, m[8 + w], w, panel + panel_bytes);
      }
    }
    return;
  }
  for (int64_t p = 0; p < 4; ++p) {
    for (int64_t piece = 0; piece < rows.words / 16; ++piece) {
      const __mmask64 mask = rows.Mask64(piece);
      RowPointer row(rows, begin + 16 * p, count);
      for (auto& bytes : m) bytes = _mm512_maskz_loadu_epi8(mask, row.Next() + 64 * piece);
      Transpose(m);
      for (int64_t w = 0; w < 16; ++w) {
        StoreKeyWord(rows, m[w], 16 * piece + w, panels + p * panel_bytes);
      }
    }
  }
}

// The element of a key panel's byte `code`, counted along depth.
inline int64_t KeyElement(const CodeRows& rows, int64_t code) {
  return rows.is_nibble ? code / 8 * 8 + code % 4 * 2 + code / 4 % 2 : code;
}

// The bytes of four keys side by side: register v holds byte ValueByte(v, lane) of
// each in the lane's four bytes.
inline void InterleaveKeys(const __m512i (&key)[4], __m512i (&out)[4]) {
  const __m512i low01 = _mm512_unpacklo_epi8(key[0], key[1]);
  const __m512i high01 = _mm512_unpackhi_epi8(key[0], key[1]);
  const __m512i low23 = _mm512_unpacklo_epi8(key[2], key[3]);
  const __m512i high23 = _mm512_unpackhi_epi8(key[2], key[3]);
  out[0] = _mm512_unpacklo_epi16(low01, low23);
  out[1] = _mm512_unpackhi_epi16(low01, low23);
  out[2] = _mm512_unpacklo_epi16(high01, high23);
  out[3] = _mm512_unpackhi_epi16(high01, high23);
}

// The same for rows of 32 bytes, held as keys 0, 1 and keys 2, 3: two registers.
inline void InterleaveShortKeys(__m512i key01, __m512i key23, __m512i (&out)[2]) {
  const __m512i even = _mm512_shuffle_i64x2(key01, key23, 0x44);  // keys 0, 2
  const __m512i odd = _mm512_shuffle_i64x2(key01, key23, 0xee);   // keys 1, 3
  const __m512i low = _mm512_unpacklo_epi8(even, odd);            // 0 1, then 2 3
  const __m512i high = _mm512_unpackhi_epi8(even, odd);
  const __m512i first = _mm512_shuffle_i64x2(low, high, 0x44);  // 0 1 of low, of high
  const __m512i second = _mm512_shuffle_i64x2(low, high, 0xee);
  out[0] = _mm512_unpacklo_epi16(first, second);
  out[1] = _mm512_unpackhi_epi16(first, second);
}

inline int64_t ValueByte(const CodeRows& rows, int64_t v, int64_t lane) {
  const int64_t quarter = lane / 4;
  if (rows.words == 8) return quarter % 2 * 16 + quarter / 2 * 8 + v * 4 + lane % 4;
  return v / 4 * 64 + quarter * 16 + v % 4 * 4 + lane % 4;
}

// The element of column `column` of the value panels.
inline int64_t ValueElement(const CodeRows& rows, int64_t column) {
  const int64_t panel = column / 16;
  if (!rows.is_nibble) return ValueByte(rows, panel, column % 16);
  return 2 * ValueByte(rows, panel / 2, column % 16) + panel % 2;
}

// Writes register v of keys [depth, depth + 4) to its panels.
inline void StoreValueBytes(const CodeRows& rows, __m512i bytes, int64_t v, int64_t depth,
                            uint8_t* panels, int64_t panel_bytes) {
  if (rows.is_nibble) {
    uint8_t* panel = panels + 2 * v * panel_bytes + depth * 16;
    _mm512_store_si512(panel, LowNibbles(bytes));
    _mm512_store_si512(panel + panel_bytes, HighNibbles(bytes));
  } else {
    _mm512_store_si512(panels + v * panel_bytes + depth * 16, bytes);
  }
}

// Stages the values of keys [begin, begin + depth) of `count`, depth a multiple of 4,
// as panels of depth x 16 bytes; keys past the end repeat the last one.
inline void StageValues(const CodeRows& rows, int64_t begin, int64_t count, int64_t depth,
                        uint8_t* panels) {
  const int64_t panel_bytes = depth * 16;
  if (rows.words == 8) {
    const __mmask32 mask = rows.Mask32();
    RowPointer row(rows, begin, count);
    const auto load_two = [&] {
      const __m256i first = _mm256_maskz_loadu_epi8(mask, row.Next());
      return _mm512_inserti64x4(_mm512_castsi256_si512(first),
                                _mm256_maskz_loadu_epi8(mask, row.Next()), 1);
    };
    for (int64_t d = 0; d < depth; d += 4) {
      __m512i out[2];
      const __m512i key01 = load_two();
      const __m512i key23 = load_two();
      InterleaveShortKeys(key01, key23, out);
      for (int64_t v = 0; v < 2; ++v) StoreValueBytes(rows, out[v], v, d, panels, panel_bytes);
    }
    return;
  }
  for (int64_t piece = 0; piece < rows.words / 16; ++piece) {
    const __mmask64 mask = rows.Mask64(piece);
    RowPointer row(rows, begin, count);
    for (int64_t d = 0; d < depth; d += 4) {
      __m512i in[4];
      __m512i out[4];
      for (auto& bytes : in) bytes = _mm512_maskz_loadu_epi8(mask, row.Next() + 64 * piece);
      InterleaveKeys(in, out);
      for (int64_t v = 0; v < 4; ++v) {
        StoreValueBytes(rows, out[v], 4 * piece + v, d, panels, panel_bytes);
      }
    }
  }
}

struct DigitTag {};
struct PanelTag {};
struct ProductTag {};
struct OrderTag {};

// Keys that are staged at once for scores, and for values: 8 and 16 KB at head_dim
// 128, in the L1 cache.
inline constexpr int64_t kScoreKeys = 64;
inline constexpr int64_t kValueKeys = 128;

// scores [rows, kScoreStride] = scale q . k
template <typename Multiplier>
void ScoreIntegers(const AttentionBlock& block, float* scores) {
  const AttentionArgs& args = *block.args;
  const CodeRows k(args.k, block.kv_head, block.key_begin);
  const int64_t rows = block.rows();
  const int64_t keys = block.keys();
  const int64_t depth = k.codes();
  int8_t* digits =
      ThreadScratch<DigitTag, int8_t>(static_cast<size_t>(Multiplier::PaddedRows(rows) * depth));
  uint8_t* panels = ThreadScratch<PanelTag, uint8_t>(static_cast<size_t>(depth * kScoreKeys));
  float* ordered = ThreadScratch<ProductTag, float>(static_cast<size_t>(depth));
  int32_t* order = ThreadScratch<OrderTag, int32_t>(static_cast<size_t>(depth));
  for (int64_t i = 0; i < depth; ++i) order[i] = static_cast<int32_t>(KeyElement(k, i));
  const __m512i elements = _mm512_set1_epi32(static_cast<int32_t>(k.elements));
  FixedPoint query[kAttentionFewRows];
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = args.q + block.Offset(r);
    for (int64_t i = 0; i < depth; i += 16) {
      const __m512i index = _mm512_loadu_si512(order + i);
      _mm512_storeu_ps(ordered + i, _mm512_mask_i32gather_ps(
                                        _mm512_setzero_ps(),
                                        _mm512_cmplt_epi32_mask(index, elements), index, q, 4));
    }
    query[r] = ToFixedPoint(ordered, depth, digits + r * kDigits * depth, depth);
    query[r].unit *= args.scale;
  }
  for (int64_t begin = 0; begin < keys; begin += kScoreKeys) {
    StageKeys(k, begin, keys, panels);
    Multiplier::Run(rows, depth, digits, depth, panels, kScoreKeys / 16, depth * 16, scores + begin,
                    kScoreStride, false);
    for (int64_t j = begin; j < std::min(keys, begin + kScoreKeys); j += 16) {
      const __mmask16 mask = static_cast<__mmask16>((1u << std::min<int64_t>(16, keys - j)) - 1);
      const __m512 zero =
          _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, k.zero + j)));
      const __m512 scale = _mm512_maskz_loadu_ps(mask, k.scale + j);
      for (int64_t r = 0; r < rows; ++r) {
        float* score = scores + r * kScoreStride + j;
        const __m512 dot =
            _mm512_fnmadd_ps(zero, _mm512_set1_ps(query[r].total), _mm512_loadu_ps(score));
        _mm512_storeu_ps(score, dot * _mm512_set1_ps(query[r].unit) * scale);
      }
    }
  }
}

// sum_j zero[j] x[j] of `keys` zero points and x in units, from its digits.
inline float SumZeros(const uint8_t* zero, int64_t keys, const int8_t* digits, int64_t stride) {
  __m512i sum[kDigits] = {};
  for (int64_t j = 0; j < keys; j += 64) {
    const __mmask64 mask = keys - j >= 64 ? ~__mmask64{0} : (__mmask64{1} << (keys - j)) - 1;
    const __m512i zeros = _mm512_maskz_loadu_epi8(mask, zero + j);
    for (int64_t d = 0; d < kDigits; ++d) {
      sum[d] = _mm512_dpbusd_epi32(sum[d], zeros, _mm512_loadu_si512(digits + d * stride + j));
    }
  }
  return _mm512_reduce_add_ps(FromDigits(sum[0], sum[1], sum[2]));
}

// values [rows, head_dim] = weights [rows, kScoreStride] V; weights are multiplied by
// V's scales on return.
template <typename Multiplier>
void SumIntegers(const AttentionBlock& block, float* weights, float* values) {
  const KvPlane& plane = block.args->v;
  const CodeRows v(plane, block.kv_head, block.key_begin);
  const int64_t rows = block.rows();
  const int64_t keys = block.keys();
  const int64_t padded = (keys + 63) / 64 * 64;
  const int64_t width = v.codes();
  int8_t* digits =
      ThreadScratch<DigitTag, int8_t>(static_cast<size_t>(Multiplier::PaddedRows(rows) * padded));
  uint8_t* panels = ThreadScratch<PanelTag, uint8_t>(static_cast<size_t>(width * kValueKeys));
  float* sums = ThreadScratch<ProductTag, float>(static_cast<size_t>(rows * width));
  FixedPoint weight[kAttentionFewRows];
  for (int64_t r = 0; r < rows; ++r) {
    float* w = weights + r * kScoreStride;  // zeros from keys to padded
    for (int64_t j = 0; j < keys; ++j) w[j] *= v.scale[j];
    weight[r] = ToFixedPoint(w, padded, digits + r * kDigits * padded, padded);
  }
  for (int64_t begin = 0; begin < keys; begin += kValueKeys) {
    const int64_t depth = std::min(kValueKeys, padded - begin);
    StageValues(v, begin, keys, depth, panels);
    Multiplier::Run(rows, depth, digits + begin, padded, panels, width / 16, depth * 16, sums,
                    width, begin > 0);
  }
  int32_t* column = ThreadScratch<OrderTag, int32_t>(static_cast<size_t>(width));
  for (int64_t i = 0; i < width; ++i) {
    column[ValueElement(v, i)] = static_cast<int32_t>(i);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const float zeros = SumZeros(v.zero, keys, digits + r * kDigits * padded, padded);
    float* row = values + r * v.elements;
    for (int64_t i = 0; i < v.elements; ++i) {
      row[i] = (sums[r * width + column[i]] - zeros) * weight[r].unit;
    }
  }
}

}  // namespace
}  // namespace flatquant
