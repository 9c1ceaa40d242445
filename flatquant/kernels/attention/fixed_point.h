#pragma once

#include <immintrin.h>

#include <bit>
#include <cstdint>

// Floats as fixed point of one or two bytes, in units of their row's largest:
//
//   x = unit (256 high + low), or x = unit low
//
// Queries have signed digits, which meet unsigned codes; softmax weights, never
// negative, unsigned ones, which meet signed codes. A byte product takes one of each.
//
// One digit where the cache's codes are nibbles. It leaves 1/254 of a query's largest
// element and 1/510 of a step's heaviest weight at most, the nibble 1/30 of a vector's
// range: with elements spread evenly or normally (a range of 5 deviations, a largest
// element of 2.5) the query's error adds 12^-1/2 2.5 / 127 = 0.6% of a deviation to each
// product, the key's 12^-1/2 5 / 15 = 9.6%. In power that is 1/280 of what the cache has
// done to the scores before.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

template <int kDigits>
inline constexpr float kQueryMax = kDigits == 1 ? 127 : 127 * 256 + 127;
template <int kDigits>
inline constexpr float kWeightMax = kDigits == 1 ? 255 : 65535;
// Half a unit of the queries, the coarser ones, of the row's largest.
template <int kDigits>
inline constexpr double kFixedRounding = 0.5 / kQueryMax<kDigits>;
// Below it, unit's reciprocal would overflow; such a row counts as zeros.
inline constexpr float kSmallest = 0x1p-100f;

// What numbers up to `largest` are multiplied with before they are rounded, and the
// unit in which they are then counted: positive, or NaN if the largest is NaN.
inline float FixedFactor(float largest, float max) {
  return largest > kSmallest ? max / largest : 0.0f;
}
inline float FixedUnit(float largest, float max) {
  return largest <= kSmallest ? 1.0f : largest / max;
}

struct FixedQuery {
  float unit;
  float total;  // of all elements, in units
};

// x [n] (n a multiple of 16) to its digits [kDigits][n], the lower ones first.
template <int kDigits>
inline FixedQuery QueryDigits(const float* x, int64_t n, uint8_t* digits) {
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i top = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 16) {
    top = _mm512_max_epu32(top, _mm512_and_si512(_mm512_loadu_si512(x + i), magnitude));
  }
  const float largest = std::bit_cast<float>(_mm512_reduce_max_epu32(top));
  const __m512 factor = _mm512_set1_ps(FixedFactor(largest, kQueryMax<kDigits>));
  __m512i total = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += 16) {
    const __m512i fixed = _mm512_cvtps_epi32(_mm512_loadu_ps(x + i) * factor);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + i), _mm512_cvtepi32_epi8(fixed));
    if constexpr (kDigits == 2) {
      const __m512i high = _mm512_srai_epi32(_mm512_add_epi32(fixed, _mm512_set1_epi32(128)), 8);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(digits + n + i), _mm512_cvtepi32_epi8(high));
    }
    total = _mm512_add_epi32(total, fixed);
  }
  return {FixedUnit(largest, kQueryMax<kDigits>),
          static_cast<float>(_mm512_reduce_add_epi32(total))};
}

// 64 weights, as they are after the multiplication with their factor, to digits, the
// lower ones first, `stride` bytes from digit to digit.
template <int kDigits>
inline void WeightDigits(const __m512 (&x)[4], uint8_t* digits, int64_t stride) {
  // Packing works within 128 bits; what it leaves is 4 weights of x[0], 4 of x[1], ...
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i first = _mm512_packus_epi32(_mm512_cvtps_epi32(x[0]), _mm512_cvtps_epi32(x[1]));
  const __m512i second = _mm512_packus_epi32(_mm512_cvtps_epi32(x[2]), _mm512_cvtps_epi32(x[3]));
  const auto store = [&](__m512i packed, uint8_t* to) {
    _mm512_storeu_si512(to, _mm512_permutexvar_epi32(order, packed));
  };
  if constexpr (kDigits == 1) {
    store(_mm512_packus_epi16(first, second), digits);
  } else {
    const __m512i lower = _mm512_set1_epi16(255);
    store(_mm512_packus_epi16(_mm512_and_si512(first, lower), _mm512_and_si512(second, lower)),
          digits);
    store(_mm512_packus_epi16(_mm512_srli_epi16(first, 8), _mm512_srli_epi16(second, 8)),
          digits + stride);
  }
}

// 16 numbers without their unit, from sums of their digits' products: of the lower
// digits, then, `stride` elements on, of the higher ones.
template <int kDigits>
inline __m512 FromDigits(const int32_t* sums, int64_t stride) {
  const __m512 low = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums));
  if constexpr (kDigits == 1) return low;
  const __m512 high = _mm512_cvtepi32_ps(_mm512_loadu_si512(sums + stride));
  return _mm512_fmadd_ps(high, _mm512_set1_ps(256.0f), low);
}

// 2^x for x <= 0; 0 below -86, as SoftmaxExpLanes (vector_exp.h) and for its reasons. A
// minimax polynomial on [0, 1]: of degree 5, with a relative error below 2^-23, or, for
// weights of one digit, of degree 3, with one of 2^-13.7, a fiftieth of that digit's rounding.
template <int kDigits>
inline __m512 SoftmaxPowerOfTwo(__m512 x) {
  const __mmask16 counts = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-86.0f), _CMP_NLT_UQ);
  const __m512 f = _mm512_reduce_ps(x, _MM_FROUND_TO_NEG_INF);  // x - floor(x)
  __m512 p;
  if constexpr (kDigits == 1) {
    p = _mm512_set1_ps(0.0780245227f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2260671554f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6958335405f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999252186f));
  } else {
    p = _mm512_set1_ps(0.0018775767f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0089893401f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.0558263181f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.2401536170f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.6931530732f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.9999999251f));
  }
  return _mm512_maskz_scalef_ps(counts, p, x);
}

}  // namespace
}  // namespace flatquant
