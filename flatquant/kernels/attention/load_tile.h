#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "flatquant/base/half.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Sixteen codes as floats (q - zero) * scale.
inline void StoreCodes(__m128i codes, __m256 zero, __m256 scale, float* out) {
  const __m256 low = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(codes));
  const __m256 high = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_srli_si128(codes, 8)));
  _mm256_storeu_ps(out, _mm256_mul_ps(_mm256_sub_ps(low, zero), scale));
  _mm256_storeu_ps(out + 8, _mm256_mul_ps(_mm256_sub_ps(high, zero), scale));
}

inline void WidenNibbles(const uint8_t* in, int64_t n, float zero, float scale, float* out) {
  const __m256 zeros = _mm256_set1_ps(zero);
  const __m256 scales = _mm256_set1_ps(scale);
  const __m128i mask = _mm_set1_epi8(15);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i / 2));
    const __m128i even = _mm_and_si128(bytes, mask);
    const __m128i odd = _mm_and_si128(_mm_srli_epi16(bytes, 4), mask);
    StoreCodes(_mm_unpacklo_epi8(even, odd), zeros, scales, out + i);
    StoreCodes(_mm_unpackhi_epi8(even, odd), zeros, scales, out + i + 16);
  }
  for (; i < n; ++i) {
    const int q = i % 2 == 0 ? in[i / 2] & 15 : in[i / 2] >> 4;
    out[i] = (static_cast<float>(q) - zero) * scale;
  }
}

inline void WidenBytes(const uint8_t* in, int64_t n, float zero, float scale, float* out) {
  const __m256 zeros = _mm256_set1_ps(zero);
  const __m256 scales = _mm256_set1_ps(scale);
  int64_t i = 0;
  for (; i + 16 <= n; i += 16) {
    StoreCodes(_mm_loadu_si128(reinterpret_cast<const __m128i*>(in + i)), zeros, scales, out + i);
  }
  for (; i < n; ++i) out[i] = (static_cast<float>(in[i]) - zero) * scale;
}

// The vectors of KV head `head` at positions [begin, end) as floats, in rows of
// `stride` elements; elements past head_dim are left alone. Without kScaled, integer
// formats give q - zero, which bfloat16 holds exactly.
template <bool kScaled = true>
inline void LoadTile(const KvPlane& plane, int64_t head, int64_t begin, int64_t end, float* out,
                     int64_t stride) {
  const int64_t n = plane.head_dim;
  const size_t row_bytes = KvRowBytes(plane.format, n);
  for (int64_t j = begin; j < end; ++j, out += stride) {
    const size_t index = static_cast<size_t>(head * plane.capacity + j);
    const uint8_t* in = plane.data + index * row_bytes;
    switch (plane.format) {
      case KvFormat::kF32:
        std::memcpy(out, in, row_bytes);
        break;
      case KvFormat::kBF16:
        BF16ToFloat(reinterpret_cast<const uint16_t*>(in), out, static_cast<size_t>(n));
        break;
      case KvFormat::kNibble:
        WidenNibbles(in, n, plane.zero[index], kScaled ? plane.scale[index] : 1.0f, out);
        break;
      case KvFormat::kByte:
        WidenBytes(in, n, plane.zero[index], kScaled ? plane.scale[index] : 1.0f, out);
        break;
    }
  }
}

}  // namespace
}  // namespace flatquant
