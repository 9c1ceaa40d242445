#include <immintrin.h>

#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {

double Bf16Avx512Loop(int64_t rounds) {
  __m512 sum[kChains512];
#pragma GCC unroll 16
  for (__m512& chain : sum) chain = _mm512_set1_ps(1.0f);
  const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.75f), _mm512_set1_ps(-0.74f));
  const __m512bh b = _mm512_cvtne2ps_pbh(_mm512_set1_ps(0.3f), _mm512_set1_ps(0.31f));
  for (int64_t round = 0; round < rounds; ++round) {
#pragma GCC unroll 16
    for (__m512& chain : sum) {
      chain = _mm512_dpbf16_ps(chain, a, b);
      asm volatile("" : "+v"(chain));
    }
  }
  return 2.0 * 32 * kChains512 * static_cast<double>(rounds);
}

}  // namespace flatquant
