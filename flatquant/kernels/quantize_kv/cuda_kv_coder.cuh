#pragma once

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

// What both kernels do with a vector of the K or the V cache at the end.
namespace flatquant::cuda {

// The number of a vector in a plane.
__device__ inline int64_t VectorAt(const CudaKvPlane& plane, int64_t slot, int64_t head,
                                   int64_t position) {
  return (slot * plane.heads + head) * plane.capacity + position;
}

// Values of a vector to codes of 2..4 bits, as quantize_kv.h says with a scale that is a bfloat16,
// by instructions of full rate:
// adding 1.5 * 2^23 rounds half to even and leaves the integer in the low bits. Bounds that are
// integers may come before rounding.
struct KvCoder {
  static constexpr float kRounds = 12582912.0f;
  static constexpr uint32_t kRoundsBits = 0x4b400000u;
  static constexpr uint16_t kOne = 0x3f80;  // bfloat16
  uint16_t scale_bits;
  float zero, inverse, low, high;
  uint32_t zero_bits;

  // least <= 0 <= most: of the vector's elements. A vector of smaller ones than any scale's inverse
  // allows is zeros.
  __device__ KvCoder(float least, float most, KronClip clip, int bits) {
    const float top = static_cast<float>((1 << bits) - 1);
    const float lo = clip.min * least;
    scale_bits = __bfloat16_as_ushort(__float2bfloat16_rn(__fdividef(clip.max * most - lo, top)));
    if (!(Bf16ToFloat(scale_bits) >= 0x1p-120f)) scale_bits = kOne;
    inverse = __fdividef(1.0f, Bf16ToFloat(scale_bits));
    zero = rintf(-lo * inverse);
    low = -zero;
    high = top - zero;
    zero_bits = static_cast<uint32_t>(zero) - kRoundsBits;
  }

  __device__ uint32_t operator()(float x) const {
    const float steps = fminf(fmaxf(__fmul_rn(x, inverse), low), high);
    return __float_as_uint(__fadd_rn(steps, kRounds)) + zero_bits;
  }

  __device__ void StoreScale(const CudaKvPlane& plane, int64_t vector) const {
    plane.scale[vector] = scale_bits;
    plane.zero[vector] = static_cast<uint8_t>(zero);
  }
};

}  // namespace flatquant::cuda
