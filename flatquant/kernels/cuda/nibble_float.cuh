#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flatquant::cuda {

// Nibbles to pairs of 16-bit floats without conversions: a nibble placed in the low
// mantissa bits of 1024 (half) or 128 (bfloat16) is that number plus the nibble, exactly;
// subtracting the number plus the zero point leaves q - zero, exactly.
template <typename T>
struct NibbleFloat;

template <>
struct NibbleFloat<__half> {
  static constexpr uint32_t kBits = 0x64006400u;
  using Pair = __half2;
};

template <>
struct NibbleFloat<__nv_bfloat16> {
  static constexpr uint32_t kBits = 0x43004300u;
  using Pair = __nv_bfloat162;
};

// What to subtract for a pair whose elements have these zero points (0..15).
template <typename T>
__device__ inline typename NibbleFloat<T>::Pair ZeroPair(uint32_t low, uint32_t high) {
  const uint32_t bits = low | high << 16 | NibbleFloat<T>::kBits;
  return reinterpret_cast<const typename NibbleFloat<T>::Pair&>(bits);
}

// 2^x, 0 for -infinity; exp2f would also care for subnormal results.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Nibble i of each 16-bit half of word, i in 0..3, as (q - zero) pairs.
template <typename T>
__device__ inline void WidenWord(uint32_t word, typename NibbleFloat<T>::Pair zero,
                                 uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t bits = ((word >> (4 * i)) & 0x000f000fu) | NibbleFloat<T>::kBits;
    const auto pair = __hsub2(reinterpret_cast<const typename NibbleFloat<T>::Pair&>(bits), zero);
    pairs[i] = reinterpret_cast<const uint32_t&>(pair);
  }
}

}  // namespace flatquant::cuda
