#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"
#include "flatquant/kernels/scratch.h"

// The vectors of a cache of codes, and the orders of their elements that byte products
// want: how registers of them are rearranged, and with them queries and sums.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Keys of a step: what is staged, or multiplied, before the next softmax. Panels of K and V
// (code_panels.h) then take 8 KB each at head_dim 64, half of the L1 cache; at 128 all of
// it, and are read from there and L2 in order.
inline constexpr int64_t kCodeKeys = 128;

struct CodeCopyTag {};

// A KV head's vectors from position `begin` on.
struct CodeRows {
  const uint8_t* data;  // the first vector
  const float* scale;   // [vectors]
  const uint8_t* zero;  // [vectors]
  int64_t row_bytes;
  int64_t whole_bytes;  // row_bytes rounded up to 32, or to a multiple of 64
  int64_t elements;
  bool is_nibble;

  CodeRows(const KvPlane& plane, int64_t head, int64_t begin) {
    const int64_t first = head * plane.capacity + begin;
    row_bytes = static_cast<int64_t>(KvRowBytes(plane.format, plane.head_dim));
    elements = plane.head_dim;
    is_nibble = plane.format == KvFormat::kNibble;
    whole_bytes = row_bytes <= 32 && is_nibble ? 32 : (row_bytes + 63) / 64 * 64;
    data = plane.data + first * row_bytes;
    scale = plane.scale + first;
    zero = plane.zero + first;
  }
  bool is_short() const { return whole_bytes == 32; }
  // Bytes of a staged vector, a multiple of 64.
  int64_t codes() const { return whole_bytes * (is_nibble ? 2 : 1); }

  // `padded` rows of whole_bytes each from number `begin` on, of which `count` are in
  // the cache: there, or their copy with zeros around them.
  const uint8_t* Whole(int64_t begin, int64_t count, int64_t padded) const {
    const uint8_t* rows = data + begin * row_bytes;
    if (row_bytes == whole_bytes && count == padded) return rows;
    auto* copy = ThreadScratch<CodeCopyTag, uint8_t>(static_cast<size_t>(padded * whole_bytes));
    std::memset(copy, 0, static_cast<size_t>(padded * whole_bytes));
    for (int64_t j = 0; j < count; ++j) {
      std::memcpy(copy + j * whole_bytes, rows + j * row_bytes, static_cast<size_t>(row_bytes));
    }
    return copy;
  }
};

inline __m512i LowNibbles(__m512i bytes) { return _mm512_and_si512(bytes, _mm512_set1_epi8(15)); }
inline __m512i HighNibbles(__m512i bytes) {
  return _mm512_and_si512(_mm512_srli_epi16(bytes, 4), _mm512_set1_epi8(15));
}

// in[i]: vectors 2 i and 2 i + 1, of 8 words each; then in[w]: word w of 16 vectors.
inline void TransposeShort(__m512i (&in)[8]) {
  __m512i t[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm512_unpacklo_epi32(in[i], in[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(in[i], in[i + 1]);
  }
  // in[half * 4 + i]: words i and i + 4 in turn of the even, then of the odd vectors
  // of a half.
  for (int half = 0; half < 8; half += 4) {
    in[half] = _mm512_unpacklo_epi64(t[half], t[half + 2]);
    in[half + 1] = _mm512_unpackhi_epi64(t[half], t[half + 2]);
    in[half + 2] = _mm512_unpacklo_epi64(t[half + 1], t[half + 3]);
    in[half + 3] = _mm512_unpackhi_epi64(t[half + 1], t[half + 3]);
  }
  const __m512i low = _mm512_setr_epi32(0, 8, 1, 9, 2, 10, 3, 11, 16, 24, 17, 25, 18, 26, 19, 27);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(4));
  for (int i = 0; i < 4; ++i) {
    const __m512i first = in[i];
    const __m512i second = in[4 + i];
    in[i] = _mm512_permutex2var_epi32(first, low, second);
    in[4 + i] = _mm512_permutex2var_epi32(first, high, second);
  }
}

// Asks memory for `bytes` bytes, into L2: a core holds few requests that end in L1, and
// waits when there are more. A third faster where memory is the limit.
inline void AskFor(const void* from, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += 64) {
    _mm_prefetch(static_cast<const char*>(from) + i, _MM_HINT_T1);
  }
}

// The next step's vectors, as far as nobody has asked memory for them: K's first.
struct Ahead {
  const uint8_t* k;
  const uint8_t* k_end;
  const uint8_t* v;
  const uint8_t* v_end;

  const uint8_t* next() const { return k < k_end ? k : v; }
  int64_t step() const { return k < k_end || v < v_end ? 64 : 0; }
  void Skip(int64_t lines) {
    if (k < k_end) {
      k = std::min(k + 64 * lines, k_end);
    } else {
      v = std::min(v + 64 * lines, v_end);
    }
  }
};

// A query [elements] in the order of a key panel's depth, zeros to codes(): of eight
// nibbles, which are a word, the even ones come first.
inline void ToKeyOrder(const CodeRows& rows, const float* query, float* ordered) {
  const __m512i order =
      rows.is_nibble ? _mm512_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7, 8, 10, 12, 14, 9, 11, 13, 15)
                     : _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  for (int64_t i = 0; i < rows.codes(); i += 16) {
    const int64_t rest = std::clamp<int64_t>(rows.elements - i, 0, 16);
    _mm512_storeu_ps(ordered + i, _mm512_permutexvar_ps(order, LoadFirst(query + i, rest)));
  }
}

// The bytes of four keys side by side: a lane of register v holds byte 16 (lane / 4) +
// 4 v + lane % 4 of each.
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

// The same for keys of 32 bytes, two in a register: byte 16 v + lane.
inline void InterleaveShortKeys(__m512i key01, __m512i key23, __m512i (&out)[2]) {
  // 128 bits hold a word of each key, then four bytes of all keys in turn.
  const __m512i first = _mm512_setr_epi32(0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27);
  const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(4));
  const __m512i bytes =
      _mm512_broadcast_i32x4(_mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15));
  out[0] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(key01, first, key23), bytes);
  out[1] = _mm512_shuffle_epi8(_mm512_permutex2var_epi32(key01, second, key23), bytes);
}

// A row of sums [codes()] over the columns of value panels in the order of elements.
inline void FromValueOrder(const CodeRows& rows, const float* columns, float* elements) {
  if (!rows.is_nibble) {
    for (int64_t v = 0; v < rows.codes() / 16; ++v, columns += 16) {
      float* out = elements + v / 4 * 64 + v % 4 * 4;
      for (int64_t i = 0; i < 4; ++i) std::memcpy(out + 16 * i, columns + 4 * i, 16);
    }
    return;
  }
  // Of a register of bytes the panel of low nibbles comes first.
  const __m512i low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
  const int64_t step = rows.is_short() ? 8 : 32;
  for (int64_t v = 0; v < rows.codes() / 32; ++v, columns += 32) {
    const __m512 even = _mm512_loadu_ps(columns);
    const __m512 odd = _mm512_loadu_ps(columns + 16);
    const __m512 first = _mm512_permutex2var_ps(even, low, odd);
    const __m512 second = _mm512_permutex2var_ps(even, high, odd);
    float* out = elements + (rows.is_short() ? v * 32 : v / 4 * 128 + v % 4 * 8);
    _mm256_storeu_ps(out, _mm512_castps512_ps256(first));
    _mm256_storeu_ps(out + step, _mm512_extractf32x8_ps(first, 1));
    _mm256_storeu_ps(out + 2 * step, _mm512_castps512_ps256(second));
    _mm256_storeu_ps(out + 3 * step, _mm512_extractf32x8_ps(second, 1));
  }
}

}  // namespace
}  // namespace flatquant
