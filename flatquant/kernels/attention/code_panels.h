#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "flatquant/kernels/attention/code_rows.h"
#include "flatquant/kernels/attention/transpose.h"

// A cache's codes as byte products want them: in panels of 16 columns,
// [depth / 4][16][4] bytes, nibbles unpacked to a byte each.
//
// For scores a column is a key and depth runs along its elements; the bytes are the
// codes, unsigned. For values a column is an element and depth runs along keys; the
// bytes are signed: code - zero from nibbles, which is exact, and code - 128 from bytes.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Writes word `word` of 16 keys to their panel.
inline void StoreKeyWord(bool is_nibble, __m512i keys, int64_t word, uint8_t* panel) {
  if (is_nibble) {
    _mm512_store_si512(panel + word * 128, LowNibbles(keys));
    _mm512_store_si512(panel + word * 128 + 64, HighNibbles(keys));
  } else {
    _mm512_store_si512(panel + word * 64, keys);
  }
}

// Stages `keys` whole rows (a multiple of 16) in panels of codes() * 16 bytes. From key
// ask_from on it asks for the vectors of the same numbers from `ahead` on.
inline void StageKeys(const CodeRows& rows, const uint8_t* row, int64_t keys, const uint8_t* ahead,
                      int64_t ask_from, uint8_t* panels) {
  const int64_t panel_bytes = rows.codes() * 16;
  for (int64_t j = 0; j < keys; j += 16, panels += panel_bytes, row += 16 * rows.whole_bytes) {
    if (j >= ask_from) AskFor(ahead + j * rows.row_bytes, 16 * rows.row_bytes);
    if (rows.is_short()) {
      __m512i m[8];
      for (int64_t i = 0; i < 8; ++i) m[i] = _mm512_loadu_si512(row + 64 * i);
      TransposeShort(m);
      for (int64_t w = 0; w < 8; ++w) StoreKeyWord(true, m[w], w, panels);
      continue;
    }
    for (int64_t piece = 0; piece < rows.whole_bytes / 64; ++piece) {
      __m512i m[16];
      for (int64_t i = 0; i < 16; ++i)
        m[i] = _mm512_loadu_si512(row + i * rows.whole_bytes + 64 * piece);
      Transpose(m);
      for (int64_t w = 0; w < 16; ++w) StoreKeyWord(rows.is_nibble, m[w], 16 * piece + w, panels);
    }
  }
}

// Writes register v of keys [key, key + 4) to its panels; zero: their zero points in
// each lane.
inline void StoreValueBytes(bool is_nibble, __m512i bytes, __m512i zero, int64_t v, int64_t key,
                            uint8_t* panels, int64_t panel_bytes) {
  if (is_nibble) {
    uint8_t* panel = panels + 2 * v * panel_bytes + key * 16;
    _mm512_store_si512(panel, _mm512_sub_epi8(LowNibbles(bytes), zero));
    _mm512_store_si512(panel + panel_bytes, _mm512_sub_epi8(HighNibbles(bytes), zero));
  } else {
    _mm512_store_si512(panels + v * panel_bytes + key * 16,
                       _mm512_xor_si512(bytes, _mm512_set1_epi8(-128)));
  }
}

// Stages `keys` whole rows (a multiple of 4) with their zero points [keys] in panels of
// kCodeKeys * 16 bytes; ahead and ask_from as above.
inline void StageValues(const CodeRows& rows, const uint8_t* row, const uint8_t* zero, int64_t keys,
                        const uint8_t* ahead, int64_t ask_from, uint8_t* panels) {
  constexpr int64_t kPanelBytes = kCodeKeys * 16;
  const int64_t bytes = rows.whole_bytes;
  for (int64_t j = 0; j < keys; j += 4, row += 4 * bytes) {
    if (j >= ask_from) AskFor(ahead + j * rows.row_bytes, 4 * rows.row_bytes);
    int32_t zero_points;
    std::memcpy(&zero_points, zero + j, sizeof(zero_points));
    const __m512i zeros = _mm512_set1_epi32(zero_points);
    if (rows.is_short()) {
      __m512i out[2];
      InterleaveShortKeys(_mm512_loadu_si512(row), _mm512_loadu_si512(row + 64), out);
      for (int64_t v = 0; v < 2; ++v) {
        StoreValueBytes(true, out[v], zeros, v, j, panels, kPanelBytes);
      }
      continue;
    }
    for (int64_t piece = 0; piece < bytes / 64; ++piece) {
      __m512i in[4];
      __m512i out[4];
      for (int64_t i = 0; i < 4; ++i) in[i] = _mm512_loadu_si512(row + i * bytes + 64 * piece);
      InterleaveKeys(in, out);
      for (int64_t v = 0; v < 4; ++v) {
        StoreValueBytes(rows.is_nibble, out[v], zeros, 4 * piece + v, j, panels, kPanelBytes);
      }
    }
  }
}

struct PanelBytesTag {};

// Codes (integer_rows.h) that are staged as panels, once for all rows. A Multiplier
// multiplies a group of rows with panels:
//
//   kRows                      rows of a group
//   Multiply<kIsSigned, kDigits>(rows, depth, digits, stride, codes, panels, panel_bytes,
//                                products, product_stride, ahead, step)
//
// which computes products [kDigits rows, 16 panels] = digits codes in int32, row by row;
// digit d of row r is row kDigits r + d of `digits`, `stride` bytes long, and of the
// products. rows <= kRows, depth is a multiple of 4, panels one of 4. Operands may be read
// up to a depth that is a multiple of 64, where either is zero, and rows up to kRows read
// and written. kIsSigned says of what sign the codes are; the digits are of the other.
// Meanwhile it asks memory for Lines<kDigits>(depth, panels) lines, `step` bytes apart
// from `ahead` on: the cache's next vectors arrive while arithmetic runs.
template <typename Multiplier, int kDigitCount>
class CodePanels {
 public:
  static constexpr int kRows = Multiplier::kRows;
  static constexpr int kDigits = kDigitCount;

  CodePanels(const CodeRows& k, const CodeRows& v)
      : k_(k), v_(v), depth_(k.codes()), width_(v.codes()) {
    key_panels_ =
        ThreadScratch<PanelBytesTag, uint8_t>(static_cast<size_t>(kCodeKeys * (depth_ + width_)));
    value_panels_ = key_panels_ + kCodeKeys * depth_;
  }

  void Stage(int64_t key, int64_t count, const uint8_t* v_zero, int64_t rows, int64_t weigh_lines,
             const Ahead& ahead) {
    const int64_t padded = (count + 63) / 64 * 64;
    // What groups will ask for; the rest is asked for here.
    const int64_t groups = (rows + kRows - 1) / kRows;
    const int64_t lines = Multiplier::template Lines<kDigits>(depth_, padded / 16) +
                          Multiplier::template Lines<kDigits>(padded, width_ / 16);
    const int64_t asked = 64 * (groups * lines + weigh_lines);
    const int64_t k_asked = asked / k_.row_bytes;
    const int64_t v_asked = std::max<int64_t>(0, asked - kCodeKeys * k_.row_bytes) / v_.row_bytes;
    StageKeys(k_, k_.Whole(key, count, padded), padded, ahead.k, k_asked, key_panels_);
    StageValues(v_, v_.Whole(key, count, padded), v_zero, padded, ahead.v, v_asked, value_panels_);
  }

  void MultiplyKeys(int64_t rows, const uint8_t* queries, int64_t keys, int32_t* products,
                    Ahead& ahead) {
    multiplier_.template Multiply<false, kDigits>(rows, depth_, queries, depth_, key_panels_,
                                                  keys / 16, depth_ * 16, products, kCodeKeys,
                                                  ahead.next(), ahead.step());
    ahead.Skip(Multiplier::template Lines<kDigits>(depth_, keys / 16));
  }

  void MultiplyValues(int64_t rows, const uint8_t* weights, int64_t keys, int32_t* products,
                      Ahead& ahead) {
    multiplier_.template Multiply<true, kDigits>(rows, (keys + 3) / 4 * 4, weights, kCodeKeys,
                                                 value_panels_, width_ / 16, kCodeKeys * 16,
                                                 products, width_, ahead.next(), ahead.step());
    ahead.Skip(Multiplier::template Lines<kDigits>(keys, width_ / 16));
  }

 private:
  const CodeRows& k_;
  const CodeRows& v_;
  int64_t depth_;  // of a staged K vector
  int64_t width_;  // of a staged V vector
  uint8_t* key_panels_;
  uint8_t* value_panels_;
  Multiplier multiplier_;
};

}  // namespace
}  // namespace flatquant
