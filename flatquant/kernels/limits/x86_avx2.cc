#include <immintrin.h>

#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {

double FmaAvx2Loop(int64_t rounds) {
  __m256 sum[kChains256];
#pragma GCC unroll 16
  for (__m256& chain : sum) chain = _mm256_set1_ps(1.0f);
  const __m256 a = _mm256_set1_ps(0.75f);
  const __m256 b = _mm256_set1_ps(0.3f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (__m256& chain : sum) {
      chain = _mm256_fmadd_ps(chain, a, b);
      asm volatile("" : "+x"(chain));
    }
  }
  return 2.0 * 8 * kChains256 * static_cast<double>(rounds);
}

double Int8Avx2Loop(int64_t rounds) {
  constexpr int kChains = 10;  // each needs a register for its products too
  __m256i sum[kChains];
#pragma GCC unroll 16
  for (__m256i& chain : sum) chain = _mm256_set1_epi8(1);
  __m256i a = _mm256_set1_epi8(11);
  const __m256i b = _mm256_set1_epi8(-5);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (__m256i& chain : sum) {
      asm volatile("" : "+x"(a));  // or the product would be computed once
      chain = _mm256_add_epi16(chain, _mm256_maddubs_epi16(a, b));
      asm volatile("" : "+x"(chain));
    }
  }
  return 2.0 * 32 * kChains * static_cast<double>(rounds);
}

uint64_t ReadLoop(const std::byte* from, size_t bytes, size_t streams) {
  // Beyond what the hardware prefetchers run ahead by themselves.
  constexpr size_t kAhead = 1024;
  constexpr size_t kStep = 256;
  const size_t length = bytes / streams;
  __m256i sum[8];
#pragma GCC unroll 16
  for (__m256i& chain : sum) chain = _mm256_setzero_si256();
  for (size_t offset = 0; offset < length; offset += kStep) {
    for (size_t stream = 0; stream < streams; ++stream) {
      const std::byte* at = from + stream * length + offset;
      for (size_t line = 0; line < kStep; line += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(at + kAhead + line), _MM_HINT_T0);
      }
      for (size_t i = 0; i < 8; ++i) {
        sum[i] = _mm256_add_epi64(
            sum[i], _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at + 32 * i)));
      }
    }
  }
  for (int i = 1; i < 8; ++i) sum[0] = _mm256_add_epi64(sum[0], sum[i]);
  alignas(32) uint64_t lanes[4];
  _mm256_store_si256(reinterpret_cast<__m256i*>(lanes), sum[0]);
  return lanes[0] + lanes[1] + lanes[2] + lanes[3];
}

}  // namespace flatquant
