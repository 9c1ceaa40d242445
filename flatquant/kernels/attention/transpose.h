#pragma once

#include <cstdint>

#include "flatquant/kernels/float_lanes.h"

// 16 x 16 words of 32 bits, transposed: how a cache's vectors, a key each, become the
// columns of a product.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

#ifdef __AVX512F__

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

// Rows `stride` words apart to 16 rows of 16 words.
inline void TransposeWords(const uint32_t* from, int64_t stride, uint32_t* to) {
  __m512i m[16];
  for (int64_t i = 0; i < 16; ++i) m[i] = _mm512_loadu_si512(from + i * stride);
  Transpose(m);
  for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(to + i * 16, m[i]);
}

#else

inline void TransposeWords(const uint32_t* from, int64_t stride, uint32_t* to) {
  for (int64_t i = 0; i < 16; ++i) {
    for (int64_t j = 0; j < 16; ++j) to[i * 16 + j] = from[j * stride + i];
  }
}

#endif

}  // namespace
}  // namespace flatquant
