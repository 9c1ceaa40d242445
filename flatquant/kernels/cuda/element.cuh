#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/base/error.h"

namespace flatquant::cuda {

// Conversions between float and the 16-bit types that activations have on a GPU.
template <typename T>
struct Element;

template <>
struct Element<__half> {
  static constexpr DType kDType = DType::kF16;
  static __device__ float ToFloat(__half x) { return __half2float(x); }
  static __device__ __half FromFloat(float x) { return __float2half_rn(x); }
  static __device__ float2 ToFloat2(uint32_t x) {
    return __half22float2(reinterpret_cast<const __half2&>(x));
  }
  // a in the low half
  static __device__ uint32_t Pack(float a, float b) {
    const __half2 pair = __floats2half2_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

template <>
struct Element<__nv_bfloat16> {
  static constexpr DType kDType = DType::kBF16;
  static __device__ float ToFloat(__nv_bfloat16 x) { return __bfloat162float(x); }
  static __device__ __nv_bfloat16 FromFloat(float x) { return __float2bfloat16_rn(x); }
  static __device__ float2 ToFloat2(uint32_t x) {
    return make_float2(__uint_as_float(x << 16), __uint_as_float(x & 0xffff0000u));
  }
  static __device__ uint32_t Pack(float a, float b) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
    return reinterpret_cast<const uint32_t&>(pair);
  }
};

__device__ inline float Bf16ToFloat(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }

// Calls run(T{}) with the element type of a DType, kF16 or kBF16.
template <typename Run>
void ForElement(DType type, const Run& run) {
  FLATQUANT_CHECK(type == DType::kF16 || type == DType::kBF16);
  if (type == DType::kF16) {
    run(__half{});
  } else {
    run(__nv_bfloat16{});
  }
}

}  // namespace flatquant::cuda
