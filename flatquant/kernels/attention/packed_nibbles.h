#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <type_traits>

#include "flatquant/kernels/attention/byte_products.h"
#include "flatquant/kernels/attention/code_rows.h"
#include "flatquant/kernels/scratch.h"
#include "flatquant/kernels/unroll.h"

// Codes (integer_rows.h) for few rows: a cache of nibbles, from memory right into products.
//
// Registers of packed vectors are rearranged as for panels (code_panels.h), but packed, two
// codes at a time, and then multiplied with all rows: nothing is unpacked to memory, which
// for few rows takes longer than the products. Nor are high nibbles shifted down: masked,
// they are 16 codes, and a shift of the sums makes up for that.
//
// Sums over values begin with what zero points take away from them: a code's product meets
// signed bytes, so the low nibble, 0 .. 15, is one as it is, and of the high one it is
// 16 (code - 8). With weights w
//
//   sum w (low - zero)     = sum w low - Z                           Z = sum w zero
//   16 sum w (high - zero) = sum w 16 (high - 8) + 128 W - 16 Z      W = sum w
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

struct NibbleTailTag {};

class PackedNibbles {
 public:
  // 16 sums, of 8 rows by a register's low and high nibbles, with what they are made from
  // take 28 of 32 registers.
  static constexpr int kRows = 8;
  static constexpr int kDigits = 1;

  // Whether vectors fill half a register, one or two.
  static bool Takes(const KvPlane& plane) {
    const int64_t n = plane.head_dim;
    return plane.format == KvFormat::kNibble && (n == 64 || n == 128 || n == 256);
  }

  PackedNibbles(const CodeRows& k, const CodeRows& v) : k_(k), v_(v) {
    k_tail_ = ThreadScratch<NibbleTailTag, uint8_t>(
        static_cast<size_t>(kTailKeys * (k.row_bytes + v.row_bytes)));
    v_tail_ = k_tail_ + kTailKeys * k.row_bytes;
  }

  void Stage(int64_t key, int64_t count, const uint8_t* v_zero, int64_t /*rows*/,
             int64_t /*weigh_lines*/, const Ahead& /*ahead*/) {
    k_row_ = k_.data + key * k_.row_bytes;
    v_row_ = v_.data + key * v_.row_bytes;
    v_zero_ = v_zero;
    whole_ = count / kTailKeys * kTailKeys;
    last_ = (count - 1) / kTailKeys * kTailKeys;
    if (count == whole_) return;
    CopyTail(k_row_, k_.row_bytes, count, k_tail_);
    CopyTail(v_row_, v_.row_bytes, count, v_tail_);
  }

  void MultiplyKeys(int64_t rows, const uint8_t* queries, int64_t keys, int32_t* products,
                    Ahead& ahead) const {
    ForShape(rows, k_.row_bytes,
             [&](auto some, auto bytes) { Keys<some, bytes>(queries, keys, products, ahead); });
  }

  void MultiplyValues(int64_t rows, const uint8_t* weights, int64_t keys, int32_t* products,
                      Ahead& ahead) const {
    ForShape(rows, v_.row_bytes,
             [&](auto some, auto bytes) { Values<some, bytes>(weights, keys, products, ahead); });
  }

 private:
  // Keys that are multiplied at once, a register's lanes; beyond the last whole ones the
  // cache may end.
  static constexpr int64_t kTailKeys = 16;

  // Calls run(rows, row_bytes) with constants: then sums are registers and digits lie at
  // constant distances.
  template <typename Run>
  static void ForShape(int64_t rows, int64_t row_bytes, const Run& run) {
    Unroll<kRows>([&](auto less) {
      constexpr std::integral_constant<int, less + 1> kSome;
      if (rows != kSome) return;
      if (row_bytes == 32) run(kSome, std::integral_constant<int, 32>{});
      if (row_bytes == 64) run(kSome, std::integral_constant<int, 64>{});
      if (row_bytes == 128) run(kSome, std::integral_constant<int, 128>{});
    });
  }

  void CopyTail(const uint8_t* rows, int64_t row_bytes, int64_t count, uint8_t* tail) const {
    const int64_t bytes = (count - whole_) * row_bytes;
    std::memcpy(tail, rows + whole_ * row_bytes, static_cast<size_t>(bytes));
    std::memset(tail + bytes, 0, static_cast<size_t>(kTailKeys * row_bytes - bytes));
  }

  const uint8_t* KeyRows(int64_t key) const {
    return key < whole_ ? k_row_ + key * k_.row_bytes : k_tail_ + (key - whole_) * k_.row_bytes;
  }
  const uint8_t* ValueRows(int64_t key) const {
    return key < whole_ ? v_row_ + key * v_.row_bytes : v_tail_ + (key - whole_) * v_.row_bytes;
  }

  // Flattened, or GCC leaves sums of vectors of 128 bytes in memory.
  template <int kSome, int kBytes>
  [[gnu::flatten]] void Keys(const uint8_t* queries, int64_t keys, int32_t* products,
                             Ahead& ahead) const {
    // Sums over high nibbles, of 16 codes, are held apart: a shift of each row's sum instead
    // of each word's nibbles, and chains of products half as long.
    constexpr int kDepth = 2 * kBytes;
    const __m512i mask = _mm512_set1_epi8(15);
    const uint8_t* asked = ahead.next();
    const int64_t step = ahead.step();
    for (int64_t j = 0; j < keys; j += kTailKeys) {
      // Beyond the step's end any keys will do.
      const uint8_t* row = KeyRows(std::min(j, last_));
      __m512i low[kSome];
      __m512i high[kSome];
      Unroll<kSome>([&](auto r) { low[r] = high[r] = _mm512_setzero_si512(); });
      Unroll<kBytes / 32>([&](auto column) {
        __m512i m[8];
        Unroll<8>([&](auto i) {
          const uint8_t* two = row + 2 * i * kBytes + 32 * column;
          if constexpr (kBytes == 32) {
            m[i] = _mm512_loadu_si512(two);
          } else {
            const auto* first = reinterpret_cast<const __m256i*>(two);
            const auto* second = reinterpret_cast<const __m256i*>(two + kBytes);
            m[i] = _mm512_inserti64x4(_mm512_castsi256_si512(_mm256_loadu_si256(first)),
                                      _mm256_loadu_si256(second), 1);
          }
          _mm_prefetch(reinterpret_cast<const char*>(asked), _MM_HINT_T1);
          asked += step;
        });
        TransposeShort(m);
        Unroll<8>([&](auto w) {
          const __m512i even = _mm512_and_si512(m[w], mask);
          const __m512i odd = _mm512_andnot_si512(mask, m[w]);
          Unroll<kSome>([&](auto r) {
            constexpr int kOffset = r * kDepth + 64 * column + 8 * w;
            low[r] = AddProductsOfFour<kOffset>(low[r], queries, even);
            high[r] = AddProductsOfFour<kOffset + 4>(high[r], queries, odd);
          });
        });
      });
      Unroll<kSome>([&](auto r) {
        const __m512i sum = _mm512_add_epi32(low[r], _mm512_srai_epi32(high[r], 4));
        _mm512_storeu_si512(products + r * kCodeKeys + j, sum);
      });
    }
    ahead.Skip(keys * kBytes / 64);
  }

  template <int kSome, int kBytes>
  void Values(const uint8_t* weights, int64_t keys, int32_t* products, Ahead& ahead) const {
    // A register of interleaved bytes has those of four keys for 32 elements. Sums are held
    // for as many as make 16 sums at most.
    constexpr int kRegisters = std::min(4, kBytes / 16);
    constexpr int kHeld = std::min(kRegisters, kSome <= 2 ? 4 : kSome <= 4 ? 2 : 1);
    __m512i low[kSome];
    __m512i high[kSome];
    const int64_t padded = (keys + 63) / 64 * 64;
    Unroll<kSome>([&](auto r) { Begin(weights + r * kCodeKeys, padded, &low[r], &high[r]); });
    const int64_t groups = (keys + 3) / 4;
    for (int64_t column = 0; column < kBytes; column += 64) {
      Unroll<kRegisters / kHeld>([&](auto part) {
        int32_t* sums = products + 2 * column + part * kHeld * 32;
        Held<kSome, kBytes, part * kHeld, kHeld>(weights, groups, column, low, high, sums,
                                                 ahead.next(), ahead.step());
        ahead.Skip(groups * kHeld);
      });
    }
  }

  // What sums over values begin with, in each lane.
  void Begin(const uint8_t* weights, int64_t keys, __m512i* low, __m512i* high) const {
    __m512i zeros = _mm512_setzero_si512();
    __m512i ones = _mm512_setzero_si512();
    for (int64_t j = 0; j < keys; j += 64) {
      const __m512i w = _mm512_loadu_si512(weights + j);
      zeros = AddProducts<true>(zeros, w, _mm512_loadu_si512(v_zero_ + j));
      ones = AddProducts<true>(ones, w, _mm512_set1_epi8(1));
    }
    // Z and W side by side, then all over the register.
    __m512i sums =
        _mm512_add_epi32(_mm512_unpacklo_epi32(zeros, ones), _mm512_unpackhi_epi32(zeros, ones));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_epi32(sums, _MM_PERM_BADC));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_i32x4(sums, sums, _MM_PERM_CDAB));
    sums = _mm512_add_epi32(sums, _mm512_shuffle_i32x4(sums, sums, _MM_PERM_BADC));
    const __m512i zero = _mm512_shuffle_epi32(sums, _MM_PERM_CCAA);
    const __m512i sum = _mm512_shuffle_epi32(sums, _MM_PERM_DDBB);
    *low = _mm512_sub_epi32(_mm512_setzero_si512(), zero);
    *high = _mm512_sub_epi32(_mm512_slli_epi32(sum, 7), _mm512_slli_epi32(zero, 4));
  }

  // Sums of kSome rows over `groups` times four keys for registers [kFirst, kFirst + kHeld) of
  // those that 64 bytes of each key, from `column` on, become when they are interleaved.
  template <int kSome, int kBytes, int kFirst, int kHeld>
  void Held(const uint8_t* weights, int64_t groups, int64_t column,
            const __m512i (&low_begin)[kSome], const __m512i (&high_begin)[kSome],
            int32_t* products, const uint8_t* asked, int64_t step) const {
    const __m512i mask = _mm512_set1_epi8(15);
    const __m512i top = _mm512_set1_epi8(-128);
    const __m512i high_mask = _mm512_set1_epi8(-16);
    __m512i low[kSome][kHeld];
    __m512i high[kSome][kHeld];
    Unroll<kSome>([&](auto r) {
      Unroll<kHeld>([&](auto h) {
        low[r][h] = low_begin[r];
        high[r][h] = high_begin[r];
      });
    });
    for (int64_t g = 0; g < groups; ++g) {
      const uint8_t* row = ValueRows(4 * g) + column;
      Unroll<kHeld>([&](auto) {  // a line's share of these registers
        _mm_prefetch(reinterpret_cast<const char*>(asked), _MM_HINT_T1);
        asked += step;
      });
      __m512i out[kBytes == 32 ? 2 : 4];
      if constexpr (kBytes == 32) {
        InterleaveShortKeys(_mm512_loadu_si512(row), _mm512_loadu_si512(row + 64), out);
      } else {
        const __m512i key[4] = {_mm512_loadu_si512(row), _mm512_loadu_si512(row + kBytes),
                                _mm512_loadu_si512(row + 2 * kBytes),
                                _mm512_loadu_si512(row + 3 * kBytes)};
        InterleaveKeys(key, out);
      }
      __m512i weight[kSome];
      Unroll<kSome>([&](auto r) {
        int32_t four;
        std::memcpy(&four, weights + r * kCodeKeys + 4 * g, sizeof(four));
        weight[r] = _mm512_set1_epi32(four);
      });
      Unroll<kHeld>([&](auto h) {
        const __m512i even = _mm512_and_si512(out[kFirst + h], mask);
        // (bytes ^ top) & high_mask
        const __m512i odd = _mm512_ternarylogic_epi32(out[kFirst + h], top, high_mask, 0x28);
        Unroll<kSome>([&](auto r) {
          low[r][h] = AddProducts<true>(low[r][h], weight[r], even);
          high[r][h] = AddProducts<true>(high[r][h], weight[r], odd);
        });
      });
    }
    Unroll<kSome>([&](auto r) {
      Unroll<kHeld>([&](auto h) {
        int32_t* to = products + r * 2 * kBytes + 32 * h;
        _mm512_storeu_si512(to, low[r][h]);
        _mm512_storeu_si512(to + 16, _mm512_srai_epi32(high[r][h], 4));
      });
    });
  }

  const CodeRows& k_;
  const CodeRows& v_;
  uint8_t* k_tail_;  // [kTailKeys, row_bytes]
  uint8_t* v_tail_;
  // Of this step: the first vectors, zero points [kCodeKeys], and how many keys lie where
  // they are in the cache; others, 15 at most, in the tails.
  const uint8_t* k_row_ = nullptr;
  const uint8_t* v_row_ = nullptr;
  const uint8_t* v_zero_ = nullptr;
  int64_t whole_ = 0;
  int64_t last_ = 0;  // where the last kTailKeys begin
};

}  // namespace
}  // namespace flatquant
