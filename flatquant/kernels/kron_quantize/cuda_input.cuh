#pragma once

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kron_quantize.h"

namespace flatquant::cuda {

// Eight neighbouring elements of a 16-bit type in registers.
template <typename T>
__device__ inline void Unpack8(uint4 packed, float (&v)[8]) {
  const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 pair = Element<T>::ToFloat2(words[i]);
    v[2 * i] = pair.x;
    v[2 * i + 1] = pair.y;
  }
}

template <typename T>
__device__ inline uint4 Pack8(const float (&v)[8]) {
  return make_uint4(Element<T>::Pack(v[0], v[1]), Element<T>::Pack(v[2], v[3]),
                    Element<T>::Pack(v[4], v[5]), Element<T>::Pack(v[6], v[7]));
}

// Elements [col, col + 8) of a token's site input, but for an RMSNorm's factor
// 1 / rms: it commutes with the transform, so that it is applied to the scale.
// square_sum collects what that factor needs.
template <typename T>
struct SiteInput {
  const T* x;
  const T* other;  // norm_weight or up of the token
  CudaSiteInput kind;

  __device__ SiteInput(const CudaKronQuantizeArgs& args, int64_t token)
      : x(static_cast<const T*>(args.x) + token * args.x_stride),
        other(args.input == CudaSiteInput::kSwiglu
                  ? static_cast<const T*>(args.up) + token * args.x_stride
                  : static_cast<const T*>(args.norm_weight)),
        kind(args.input) {}

  // Of `memory` in place of a token and of what it is multiplied by.
  __device__ SiteInput(CudaSiteInput kind, const void* memory)
      : x(static_cast<const T*>(memory)), other(x), kind(kind) {}

  // Loaded apart from Finish, so that all loads of a thread are on their way together.
  struct Loaded {
    uint4 x;
    uint4 other;
  };
  __device__ Loaded Load(int col) const {
    Loaded loaded = {__ldg(reinterpret_cast<const uint4*>(x + col)), {}};
    if (kind != CudaSiteInput::kPlain) {
      loaded.other = __ldg(reinterpret_cast<const uint4*>(other + col));
    }
    return loaded;
  }

  __device__ void Finish(const Loaded& loaded, float (&v)[8], float& square_sum) const {
    Unpack8<T>(loaded.x, v);
    if (kind == CudaSiteInput::kPlain) return;
    float w[8];
    Unpack8<T>(loaded.other, w);
    // One branch for all: with one for each element no exponential would overlap another.
    if (kind == CudaSiteInput::kRmsNorm) {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        square_sum += v[i] * v[i];
        v[i] *= w[i];
      }
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        // exp(-g) of a large negative g is infinite, and g / infinity is silu's 0.
        v[i] = __fdividef(v[i], 1.0f + __expf(-v[i])) * w[i];
      }
    }
  }
};

// Brings the norm's weights into L2, where the weights of linears will have pushed them out.
// They are not the predecessor's work: before the kernel's turn, by all threads of a CTA.
__device__ inline void PrefetchNorm(const CudaKronQuantizeArgs& args) {
  if (args.input != CudaSiteInput::kRmsNorm) return;
  const char* weights = static_cast<const char*>(args.norm_weight);
  for (int64_t at = threadIdx.x * int64_t{128}; at < args.width * 2; at += blockDim.x * 128) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(weights + at));
  }
}

// One element of the site's input; widths here need not be multiples of eight.
template <typename T>
__device__ float InputElement(const SiteInput<T>& input, int col, float& square_sum) {
  const float x = Element<T>::ToFloat(input.x[col]);
  if (input.kind == CudaSiteInput::kPlain) return x;
  const float other = Element<T>::ToFloat(input.other[col]);
  if (input.kind == CudaSiteInput::kSwiglu) return x / (1.0f + __expf(-x)) * other;
  square_sum += x * x;
  return x * other;
}

struct Extremes {
  float max = 0;
  float min = 0;
  float square_sum = 0;
};

// Over the lanes of a warp.
__device__ inline float WarpSum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

// Over all threads of the block, square_sum being a warp's already; shared holds an Extremes per
// warp. Contains one __syncthreads before the values are read; the caller keeps `shared` until the
// next.
template <int kWarps>
__device__ inline Extremes ReduceExtremes(Extremes mine, Extremes (&shared)[kWarps]) {
  // Floats of one sign order like integers, of which a warp finds the largest by one instruction.
  mine.max = __int_as_float(__reduce_max_sync(~0u, __float_as_int(mine.max)));
  mine.min = __uint_as_float(__reduce_max_sync(~0u, __float_as_uint(mine.min)));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = mine;
  __syncthreads();
  Extremes all;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) {
    all.max = fmaxf(all.max, shared[i].max);
    all.min = fminf(all.min, shared[i].min);
    all.square_sum += shared[i].square_sum;
  }
  return all;
}

// What an RMSNorm multiplies by; 1 for other inputs.
__device__ inline float NormFactor(const CudaKronQuantizeArgs& args, float square_sum) {
  if (args.input != CudaSiteInput::kRmsNorm) return 1.0f;
  return rsqrtf(square_sum / static_cast<float>(args.width) + args.eps);
}

// Every thread waits for it: divisions here are of two ulp, an eighth as long as exact ones.
__device__ inline float ChooseScale(Extremes extremes, KronClip clip, float top) {
  const float reach = fmaxf(fabsf(clip.max * extremes.max), fabsf(clip.min * extremes.min));
  const float scale = __fdividef(reach, top);
  return scale > 1e-30f ? scale : 1.0f;  // zeros, or too small to divide by
}

// Values to codes, in the low bits of a word, by two multiply-adds and no comparison:
// the first maps [-top - 1, top] to [0, 1] and saturates, the second maps back and adds
// 1.5 * 2^23, which rounds half to even and leaves the integer in the low bits.
struct Coder {
  float slope, offset, steps, shift;

  __device__ Coder(float scale, float top) {
    steps = 2 * top + 1;
    slope = __fdividef(1.0f, scale * steps);
    offset = (top + 1) / steps;
    shift = 12582912.0f - (top + 1);
  }
  __device__ uint32_t operator()(float y) const {
    return __float_as_uint(fmaf(__saturatef(fmaf(y, slope, offset)), steps, shift));
  }
};

// Sixteen codes held as int16 to bytes.
__device__ inline uint4 NarrowCodes(uint4 a, uint4 b) {
  return make_uint4(__byte_perm(a.x, a.y, 0x6420), __byte_perm(a.z, a.w, 0x6420),
                    __byte_perm(b.x, b.y, 0x6420), __byte_perm(b.z, b.w, 0x6420));
}

// Zeros in a token's codes beyond its width.
__device__ inline void ClearTail(const CudaKronQuantizeArgs& args, int8_t* codes) {
  for (int64_t i = args.width + threadIdx.x; i < args.code_stride; i += blockDim.x) codes[i] = 0;
}

}  // namespace flatquant::cuda
