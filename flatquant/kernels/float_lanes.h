#pragma once

// GCC 12 warns of its own AVX-512 functions' undefined operands (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif

#include <cstdint>

// One vector register of floats, as wide as the file that includes this is
// compiled for: 16 lanes with AVX-512, else 8. What is written with these
// functions exists once for both. + - * / work on Lanes as they are.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

#ifdef __AVX512F__

using Lanes = __m512;
inline constexpr int64_t kLanes = 16;

inline __mmask16 FirstLanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

inline Lanes SetLanes(float x) { return _mm512_set1_ps(x); }
inline Lanes LoadLanes(const float* p) { return _mm512_loadu_ps(p); }
inline void StoreLanes(float* p, Lanes v) { _mm512_storeu_ps(p, v); }
// The first n lanes, 0 <= n < kLanes; nothing beyond them is touched. Other lanes
// are loaded as 0.
inline Lanes LoadFirst(const float* p, int64_t n) {
  return _mm512_maskz_loadu_ps(FirstLanes(n), p);
}
inline void StoreFirst(float* p, Lanes v, int64_t n) { _mm512_mask_storeu_ps(p, FirstLanes(n), v); }

inline Lanes MulAdd(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }   // ab + c
inline Lanes MulSub(Lanes a, Lanes b, Lanes c) { return _mm512_fnmadd_ps(a, b, c); }  // c - ab
// b where a lane of a is NaN.
inline Lanes MaxLanes(Lanes a, Lanes b) { return _mm512_max_ps(a, b); }
inline Lanes MinLanes(Lanes a, Lanes b) { return _mm512_min_ps(a, b); }
inline Lanes RoundLanes(Lanes v) {  // half to even
  return _mm512_roundscale_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
// v 2^n for integers n, infinite where that is too large.
inline Lanes TimesPowerOfTwo(Lanes v, Lanes n) { return _mm512_scalef_ps(v, n); }
// v, but 0 where x < limit.
inline Lanes ZeroBelow(Lanes v, Lanes x, float limit) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, SetLanes(limit), _CMP_NLT_UQ), v);
}
// a / b within an ulp, for |b| in [2^-100, 2^125] and quotients in float's range:
// half the time of a division. The estimate has 14 bits, its square's error 28.
inline Lanes DivideLanes(Lanes a, Lanes b) {
  const Lanes estimate = _mm512_rcp14_ps(b);
  const Lanes quotient = a * estimate;
  return MulAdd(MulSub(quotient, b, a), estimate, quotient);
}

inline float SumOfLanes(Lanes v) { return _mm512_reduce_add_ps(v); }
inline float LargestLane(Lanes v) { return _mm512_reduce_max_ps(v); }
inline float SmallestLane(Lanes v) { return _mm512_reduce_min_ps(v); }

// Rounded half to even, as int8; the lanes' values must fit.
inline void StoreInt8(int8_t* p, Lanes v) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
inline void StoreFirstInt8(int8_t* p, Lanes v, int64_t n) {
  _mm_mask_storeu_epi8(p, FirstLanes(n), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v)));
}
// Four registers, rounded half to even, none above 127; what lies below `low`, and NaN,
// becomes low.
inline void StoreInt8AtLeast(int8_t* p, const Lanes (&v)[4], int8_t low) {
  // Packing works within 128 bits; what it leaves is 4 values of v[0], 4 of v[1], ...
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i bytes =
      _mm512_packs_epi16(_mm512_packs_epi32(_mm512_cvtps_epi32(v[0]), _mm512_cvtps_epi32(v[1])),
                         _mm512_packs_epi32(_mm512_cvtps_epi32(v[2]), _mm512_cvtps_epi32(v[3])));
  _mm512_storeu_si512(
      p, _mm512_permutexvar_epi32(order, _mm512_max_epi8(bytes, _mm512_set1_epi8(low))));
}

#else

using Lanes = __m256;
inline constexpr int64_t kLanes = 8;

inline __m256i FirstLanes(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int32_t>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

inline Lanes SetLanes(float x) { return _mm256_set1_ps(x); }
inline Lanes LoadLanes(const float* p) { return _mm256_loadu_ps(p); }
inline void StoreLanes(float* p, Lanes v) { _mm256_storeu_ps(p, v); }
inline Lanes LoadFirst(const float* p, int64_t n) { return _mm256_maskload_ps(p, FirstLanes(n)); }
inline void StoreFirst(float* p, Lanes v, int64_t n) { _mm256_maskstore_ps(p, FirstLanes(n), v); }

inline Lanes MulAdd(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }
inline Lanes MulSub(Lanes a, Lanes b, Lanes c) { return _mm256_fnmadd_ps(a, b, c); }
inline Lanes MaxLanes(Lanes a, Lanes b) { return _mm256_max_ps(a, b); }
inline Lanes MinLanes(Lanes a, Lanes b) { return _mm256_min_ps(a, b); }
inline Lanes RoundLanes(Lanes v) {
  return _mm256_round_ps(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline Lanes TimesPowerOfTwo(Lanes v, Lanes n) {
  // In two factors: n reaches 128, which one exponent field cannot hold.
  const __m256i power = _mm256_cvtps_epi32(n);
  const __m256i half = _mm256_srai_epi32(power, 1);
  const auto scale = [](__m256i exponent) {
    return _mm256_castsi256_ps(
        _mm256_slli_epi32(_mm256_add_epi32(exponent, _mm256_set1_epi32(127)), 23));
  };
  return v * scale(half) * scale(_mm256_sub_epi32(power, half));
}
inline Lanes ZeroBelow(Lanes v, Lanes x, float limit) {
  return _mm256_and_ps(_mm256_cmp_ps(x, SetLanes(limit), _CMP_NLT_UQ), v);
}
inline Lanes DivideLanes(Lanes a, Lanes b) { return a / b; }

inline float SumOfLanes(Lanes v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
inline float LargestLane(Lanes v) {
  __m128 max = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  max = _mm_max_ps(max, _mm_movehl_ps(max, max));
  return _mm_cvtss_f32(_mm_max_ss(max, _mm_movehdup_ps(max)));
}
inline float SmallestLane(Lanes v) { return -LargestLane(-v); }

inline __m128i LowBytes(Lanes v) {
  const __m256i words = _mm256_cvtps_epi32(v);
  const __m128i shorts =
      _mm_packs_epi32(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1));
  return _mm_packs_epi16(shorts, shorts);
}
inline void StoreInt8(int8_t* p, Lanes v) {
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), LowBytes(v));
}
inline void StoreFirstInt8(int8_t* p, Lanes v, int64_t n) {
  int8_t bytes[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(bytes), LowBytes(v));
  for (int64_t i = 0; i < n; ++i) p[i] = bytes[i];
}
inline void StoreInt8AtLeast(int8_t* p, const Lanes (&v)[4], int8_t low) {
  const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
  const __m256i bytes =
      _mm256_packs_epi16(_mm256_packs_epi32(_mm256_cvtps_epi32(v[0]), _mm256_cvtps_epi32(v[1])),
                         _mm256_packs_epi32(_mm256_cvtps_epi32(v[2]), _mm256_cvtps_epi32(v[3])));
  _mm256_storeu_si256(
      reinterpret_cast<__m256i*>(p),
      _mm256_permutevar8x32_epi32(_mm256_max_epi8(bytes, _mm256_set1_epi8(low)), order));
}

#endif

}  // namespace
}  // namespace flatquant
