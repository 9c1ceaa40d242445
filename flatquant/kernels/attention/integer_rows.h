#pragma once

#include <immintrin.h>

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

#include "flatquant/kernels/attention/few_rows.h"
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
// Multiplier::Run(rows, depth, a, a_stride, b, panels, panel_stride, c, c_stride,
// accumulate) computes c [rows, 16 panels] = (accumulate ? c : 0) + a b with a int8
// [rows, depth], rows a multiple of 3, depth one of 64, and the panels b.
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

// x [n] (n a multiple of 16) to its digits [3][stride] and their unit.
inline float ToFixedPoint(const float* x, int64_t n, int8_t* digits, int64_t stride) {
  const float largest = LargestMagnitude(x, n);
  const __m512 factor = _mm512_set1_ps(largest > kSmallest ? kFixedMax / largest : 0.0f);
  const __m512i half = _mm512_set1_epi32(128);
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i fixed = _mm512_cvtps_epi32(_mm512_loadu_ps(x + i) * factor);
    const __m512i middle = _mm512_srai_epi32(_mm512_add_epi32(fixed, half), 8);
    const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(middle, half), 8);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + i), _mm512_cvtepi32_epi8(fixed));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + stride + i), _mm512_cvtepi32_epi8(middle));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + 2 * stride + i),
                     _mm512_cvtepi32_epi8(high));
  }
  return largest / kFixedMax;
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
  // A vector's bytes [64 piece, 64 piece + 64), zeros past its end.
  __m512i Load(int64_t row, int64_t piece) const {
    const int64_t rest = row_bytes - 64 * piece;
    const __mmask64 mask = rest >= 64 ? ~__mmask64{0} : (__mmask64{1} << rest) - 1;
    return _mm512_maskz_loadu_epi8(mask, data + row * row_bytes + 64 * piece);
  }
};

inline __m512i LowNibbles(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i HighNibbles(__m512i bytes) {
  return _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
}

// Word j of row i becomes word i of row j.
inline void Transpose(__m512i (&m)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(m[i], m[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(m[i], m[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {  // m[i + c]: column c of rows i .. i + 3, in each 128 bits
    m[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    m[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    m[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    m[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int c = 0; c < 4; ++c) {
    const __m512i low02 = _mm512_shuffle_i32x4(m[c], m[4 + c], 0x88);
    const __m512i low13 = _mm512_shuffle_i32x4(m[c], m[4 + c], 0xdd);
    const __m512i high02 = _mm512_shuffle_i32x4(m[8 + c], m[12 + c], 0x88);
    const __m512i high13 = _mm512_shuffle_i32x4(m[8 + c], m[12 + c], 0xdd);
    m[c] = _mm512_shuffle_i32x4(low02, high02, 0x88);
    m[4 + c] = _mm512_shuffle_i32x4(low13, high13, 0x88);
    m[8 + c] = _mm512_shuffle_i32x4(low02, high02, 0xdd);
    m[12 + c] = _mm512_shuffle_i32x4(low13, high13, 0xdd);
  }
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

// Stages keys [begin, begin + 64) of `count` as four panels of columns; keys past the
// end repeat the last one.
inline void StageKeys(const CodeRows& rows, int64_t begin, int64_t count, uint8_t* panels) {
  const int64_t panel_bytes = rows.codes() * 16;
  const auto key = [&](int64_t j) { return std::min(begin + j, count - 1); };
  __m512i m[16];
  if (rows.words == 8) {  // 32 bytes or less: two keys fill a register
    for (int64_t half = 0; half < 2; ++half) {
      for (int64_t j = 0; j < 16; ++j) {
        const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << rows.row_bytes) - 1);
        const auto load = [&](int64_t k) {
          return _mm256_maskz_loadu_epi8(mask, rows.data + key(32 * half + k) * rows.row_bytes);
        };
        m[j] = _mm512_inserti64x4(_mm512_castsi256_si512(load(j)), load(16 + j), 1);
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
      for (int64_t j = 0; j < 16; ++j) m[j] = rows.Load(key(16 * p + j), piece);
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
  for (int64_t d = 0; d < depth; d += 4) {
    const auto key = [&](int64_t j) { return std::min(begin + d + j, count - 1); };
    if (rows.words == 8) {
      const __mmask32 mask = static_cast<__mmask32>((uint64_t{1} << rows.row_bytes) - 1);
      const auto load = [&](int64_t k) {
        return _mm256_maskz_loadu_epi8(mask, rows.data + key(k) * rows.row_bytes);
      };
      __m512i out[2];
      InterleaveShortKeys(_mm512_inserti64x4(_mm512_castsi256_si512(load(0)), load(1), 1),
                          _mm512_inserti64x4(_mm512_castsi256_si512(load(2)), load(3), 1), out);
      for (int64_t v = 0; v < 2; ++v) StoreValueBytes(rows, out[v], v, d, panels, panel_bytes);
      continue;
    }
    for (int64_t piece = 0; piece < rows.words / 16; ++piece) {
      __m512i in[4];
      __m512i out[4];
      for (int64_t j = 0; j < 4; ++j) in[j] = rows.Load(key(j), piece);
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
struct OrderedTag {};

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
      ThreadScratch<DigitTag, int8_t>(static_cast<size_t>(Multiplier::Rows(rows) * depth));
  uint8_t* panels = ThreadScratch<PanelTag, uint8_t>(static_cast<size_t>(depth * kScoreKeys));
  int32_t* products =
      ThreadScratch<ProductTag, int32_t>(static_cast<size_t>(Multiplier::Rows(rows) * kScoreKeys));
  float* ordered = ThreadScratch<OrderedTag, float>(static_cast<size_t>(depth));
  float unit[kAttentionFewRows];
  int32_t total[kAttentionFewRows][kDigits];
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = args.q + block.Offset(r);
    for (int64_t i = 0; i < depth; ++i) {
      const int64_t element = KeyElement(k, i);
      ordered[i] = element < k.elements ? q[element] : 0.0f;
    }
    int8_t* row = digits + r * kDigits * depth;
    unit[r] = ToFixedPoint(ordered, depth, row, depth) * args.scale;
    for (int64_t d = 0; d < kDigits; ++d) {
      total[r][d] = 0;
      for (int64_t i = 0; i < depth; ++i) total[r][d] += row[d * depth + i];
    }
  }
  for (int64_t begin = 0; begin < keys; begin += kScoreKeys) {
    StageKeys(k, begin, keys, panels);
    Multiplier::Run(rows * kDigits, depth, digits, depth, panels, kScoreKeys / 16, k.codes() * 16,
                    products, kScoreKeys, false);
    for (int64_t j = 0; j < kScoreKeys && begin + j < keys; j += 16) {
      const int64_t some = std::min<int64_t>(16, keys - begin - j);
      const __mmask16 mask = static_cast<__mmask16>((1u << some) - 1);
      const __m512i zero = _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask, k.zero + begin + j));
      const __m512 scale = _mm512_maskz_loadu_ps(mask, k.scale + begin + j);
      for (int64_t r = 0; r < rows; ++r) {
        const int32_t* c = products + r * kDigits * kScoreKeys + j;
        __m512i sum[kDigits];
        for (int64_t d = 0; d < kDigits; ++d) {
          sum[d] = _mm512_sub_epi32(_mm512_loadu_si512(c + d * kScoreKeys),
                                    _mm512_mullo_epi32(zero, _mm512_set1_epi32(total[r][d])));
        }
        const __m512 dot = FromDigits(sum[0], sum[1], sum[2]) * _mm512_set1_ps(unit[r]);
        _mm512_storeu_ps(scores + r * kScoreStride + begin + j, dot * scale);
      }
    }
  }
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
      ThreadScratch<DigitTag, int8_t>(static_cast<size_t>(Multiplier::Rows(rows) * padded));
  uint8_t* panels = ThreadScratch<PanelTag, uint8_t>(static_cast<size_t>(width * kValueKeys));
  int32_t* products =
      ThreadScratch<ProductTag, int32_t>(static_cast<size_t>(Multiplier::Rows(rows) * width));
  float unit[kAttentionFewRows];
  for (int64_t r = 0; r < rows; ++r) {
    float* w = weights + r * kScoreStride;  // zeros from keys to padded
    for (int64_t j = 0; j < keys; ++j) w[j] *= v.scale[j];
    unit[r] = ToFixedPoint(w, padded, digits + r * kDigits * padded, padded);
  }
  for (int64_t begin = 0; begin < keys; begin += kValueKeys) {
    const int64_t depth = std::min(kValueKeys, padded - begin);
    StageValues(v, begin, keys, depth, panels);
    Multiplier::Run(rows * kDigits, depth, digits + begin, padded, panels, width / 16, depth * 16,
                    products, width, begin > 0);
  }
  for (int64_t r = 0; r < rows; ++r) {
    __m512i zeros[kDigits];
    for (int64_t d = 0; d < kDigits; ++d) {
      const int8_t* digit = digits + (r * kDigits + d) * padded;
      __m512i sum = _mm512_setzero_si512();
      for (int64_t j = 0; j < keys; j += 64) {
        const __mmask64 mask = keys - j >= 64 ? ~__mmask64{0} : (__mmask64{1} << (keys - j)) - 1;
        sum = _mm512_dpbusd_epi32(sum, _mm512_maskz_loadu_epi8(mask, v.zero + j),
                                  _mm512_loadu_si512(digit + j));
      }
      zeros[d] = _mm512_set1_epi32(_mm512_reduce_add_epi32(sum));
    }
    const __m512 units = _mm512_set1_ps(unit[r]);
    for (int64_t column = 0; column < width; column += 16) {
      const int32_t* c = products + r * kDigits * width + column;
      __m512i sum[kDigits];
      for (int64_t d = 0; d < kDigits; ++d) {
        sum[d] = _mm512_sub_epi32(_mm512_loadu_si512(c + d * width), zeros[d]);
      }
      float part[16];
      _mm512_storeu_ps(part, FromDigits(sum[0], sum[1], sum[2]) * units);
      for (int64_t i = 0; i < 16; ++i) {
        const int64_t element = ValueElement(v, column + i);
        if (element < v.elements) values[r * v.elements + element] = part[i];
      }
    }
  }
}

}  // namespace
}  // namespace flatquant
