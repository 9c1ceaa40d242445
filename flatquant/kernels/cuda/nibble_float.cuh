#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace flatquant::cuda {

// (word & mask) | bits in the one instruction that it is; given two constants, the compiler
// makes two of it.
__device__ inline uint32_t PlaceNibbles(uint32_t word, uint32_t mask, uint32_t bits) {
  uint32_t placed;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(placed) : "r"(word), "r"(mask), "r"(bits));
  return placed;
}

// Nibbles to pairs of 16-bit floats without conversions: a nibble placed in the low
// mantissa bits of 1024 (half) or 128 (bfloat16) is that number plus the nibble, exactly;
// subtracting the number plus the zero point leaves q - zero, exactly.
//
//   Zeros      made once for two elements with these zero points (0..15)
//   Widen      nibble i of each 16-bit half of word, i in 0..3, as (q - zero) pairs
template <typename T>
struct NibbleFloat;

// The mantissa's ten bits hold a nibble four bits higher as well, as 1024 + 16 q: half the shifts.
template <>
struct NibbleFloat<__half> {
  struct Zeros {
    __half2 plus_1024;  // 1024 + zero
    __half2 minus_64;   // -64 - zero
  };
  static __device__ Zeros MakeZeros(uint32_t low, uint32_t high) {
    const uint32_t pair = low | high << 16;
    return {Float(pair | 0x64006400u), Float(pair << 4 | 0xd400d400u)};
  }
  static __device__ void Widen(uint32_t word, const Zeros& zeros, uint32_t (&pairs)[4]) {
    const __half2 sixteenth = Float(0x2c002c00u);
#pragma unroll
    for (int i = 0; i < 4; i += 2, word >>= 8) {
      const __half2 even = Float(PlaceNibbles(word, 0x000f000fu, 0x64006400u));
      const __half2 odd = Float(PlaceNibbles(word, 0x00f000f0u, 0x64006400u));
      pairs[i] = Bits(__hsub2(even, zeros.plus_1024));
      pairs[i + 1] = Bits(__hfma2(odd, sixteenth, zeros.minus_64));
    }
  }

 private:
  static __device__ __half2 Float(uint32_t bits) { return reinterpret_cast<const __half2&>(bits); }
  static __device__ uint32_t Bits(__half2 pair) { return reinterpret_cast<const uint32_t&>(pair); }
};

template <>
struct NibbleFloat<__nv_bfloat16> {
  struct Zeros {
    __nv_bfloat162 plus_128;  // 128 + zero
  };
  static __device__ Zeros MakeZeros(uint32_t low, uint32_t high) {
    return {Float(low | high << 16 | 0x43004300u)};
  }
  static __device__ void Widen(uint32_t word, const Zeros& zeros, uint32_t (&pairs)[4]) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const auto placed = Float(PlaceNibbles(word >> (4 * i), 0x000f000fu, 0x43004300u));
      const __nv_bfloat162 pair = __hsub2(placed, zeros.plus_128);
      pairs[i] = reinterpret_cast<const uint32_t&>(pair);
    }
  }

 private:
  static __device__ __nv_bfloat162 Float(uint32_t bits) {
    return reinterpret_cast<const __nv_bfloat162&>(bits);
  }
};

// 2^x, 0 for -infinity; exp2f would also care for subnormal results.
__device__ inline float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace flatquant::cuda
