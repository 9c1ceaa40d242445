#include <immintrin.h>

#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {

double FmaAvx512Loop(int64_t rounds) {
  __m512 sum[kChains512];
#pragma GCC unroll 16
  for (__m512& chain : sum) chain = _mm512_set1_ps(1.0f);
  const __m512 a = _mm512_set1_ps(0.75f);
  const __m512 b = _mm512_set1_ps(0.3f);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (__m512& chain : sum) {
      chain = _mm512_fmadd_ps(chain, a, b);
      asm volatile("" : "+v"(chain));
    }
  }
  return 2.0 * 16 * kChains512 * static_cast<double>(rounds);
}

double VnniLoop(int64_t rounds) {
  __m512i sum[kChains512];
#pragma GCC unroll 16
  for (__m512i& chain : sum) chain = _mm512_set1_epi32(1);
  const __m512i a = _mm512_set1_epi32(0x0b070503);
  const __m512i b = _mm512_set1_epi32(0x05f9f3fb);
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (__m512i& chain : sum) {
      chain = _mm512_dpbusd_epi32(chain, a, b);
      asm volatile("" : "+v"(chain));
    }
  }
  return 2.0 * 64 * kChains512 * static_cast<double>(rounds);
}

}  // namespace flatquant
