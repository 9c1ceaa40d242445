#pragma once

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

// What a warp does with the vectors of one head of 16 tokens: it brings them into registers,
// norms, rotates and transforms them, and quantizes or rounds them on their way out.
namespace flatquant::cuda {

constexpr int kHeadTokens = 16;
// Floats of a token's angles: 8 more spread the four rows that half a warp reads over the banks.
template <int kDim>
constexpr int kAngleStride = kDim / 2 + 8;

// A warp holds its 16 vectors: v[j][2 h + i] is token g + 8 h, element 8 j + 2 c + i, which
// is how mma.sync takes its first operand and gives its result.
template <int kDim>
using Vectors = float[kDim / 8][4];

// Of the tokens that a lane's rows g and g + 8 are.
struct Rows {
  bool any[2];  // of the warp's: whether there are tokens at all
  bool inside[2];
  int64_t slot[2];
  int64_t position[2];
};

// Starts copying a head's vectors of tokens [first, first + 16), zeros from `end` on.
template <typename T, int kDim>
__device__ inline void RequestVectors(const CudaQuantizeKvArgs& args, int64_t first, int64_t end,
                                      int64_t head, uint8_t* to) {
  constexpr int kChunks = kDim / 8;
#pragma unroll
  for (int i = threadIdx.x % 32; i < kHeadTokens * kChunks; i += 32) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < end;
    const T* from = static_cast<const T*>(args.qkv) +
                    (inside ? token * args.qkv_stride + head * kDim + i % kChunks * 8 : 0);
    CopyAsync16(SharedAddress(to) + ChunkOffset<kDim>(i / kChunks, i % kChunks), from,
                inside ? 16 : 0);
  }
}

template <typename T, int kDim>
__device__ inline void Load(const uint8_t* vectors, Vectors<kDim>& v) {
  const uint32_t from = SharedAddress(vectors) + ByColumns<kDim>(threadIdx.x % 32);
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
    uint32_t pairs[4];
    LoadMatrix(pairs, from ^ (s << 5));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = Element<T>::ToFloat2(pairs[i]);
      v[2 * s + i / 2][i % 2 * 2] = pair.x;
      v[2 * s + i / 2][i % 2 * 2 + 1] = pair.y;
    }
  }
}

// Over the four lanes that share a row.
template <typename Combine>
__device__ inline float AcrossRow(float x, const Combine& combine) {
  x = combine(x, __shfl_xor_sync(~0u, x, 1));
  return combine(x, __shfl_xor_sync(~0u, x, 2));
}

template <typename T, int kDim>
__device__ inline void Norm(const Rows& rows, const void* weight, float eps, Vectors<kDim>& v) {
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!rows.any[h]) continue;
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      sum += v[j][2 * h] * v[j][2 * h] + v[j][2 * h + 1] * v[j][2 * h + 1];
    }
    factor[h] = rsqrtf(AcrossRow(sum, [](float a, float b) { return a + b; }) / kDim + eps);
  }
  const T* at = static_cast<const T*>(weight) + threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    const float2 w = Element<T>::ToFloat2(__ldg(reinterpret_cast<const uint32_t*>(at + 8 * j)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      if (!rows.any[h]) continue;
      v[j][2 * h] *= factor[h] * w.x;
      v[j][2 * h + 1] *= factor[h] * w.y;
    }
  }
}

// Pairs (i, i + kDim / 2) are in the same thread, kDim / 16 blocks of eight apart.
// cos, sin: [16 tokens, kAngleStride].
template <int kDim>
__device__ inline void Rotate(const Rows& rows, const float* cos, const float* sin,
                              Vectors<kDim>& v) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!rows.any[h]) continue;
    const int at = (threadIdx.x % 32 / 4 + 8 * h) * kAngleStride<kDim> + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
      const float2 turn_cos = *reinterpret_cast<const float2*>(cos + at + 8 * j);
      const float2 turn_sin = *reinterpret_cast<const float2*>(sin + at + 8 * j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float a = v[j][2 * h + i];
        const float b = v[j + kDim / 16][2 * h + i];
        const float c = i == 0 ? turn_cos.x : turn_cos.y;
        const float s = i == 0 ? turn_sin.x : turn_sin.y;
        v[j][2 * h + i] = a * c - b * s;
        v[j + kDim / 16][2 * h + i] = b * c + a * s;
      }
    }
  }
}

// v = v P, operands rounded to T.
template <typename T, int kDim, bool kHeld>
__device__ inline void Transform(const uint4* packed, Vectors<kDim>& v) {
  const uint4* fragments = packed + threadIdx.x % 32;
  uint32_t a[kDim / 16][4];
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = v[2 * s + i / 2] + i % 2 * 2;
      a[s][i] = Element<T>::Pack(pair[0], pair[1]);
    }
  }
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    float d[4] = {};
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      const uint4* at = fragments + (j * (kDim / 32) + s) * 32;
      const uint4 b = kHeld ? *at : __ldg(at);
      Mma16<T>(d, a[2 * s], b.x, b.y);
      Mma16<T>(d, a[2 * s + 1], b.z, b.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[j][i] = d[i];
  }
}

// Lane c of four holds byte i of four words: afterwards it holds word c, whose byte i
// came from lane i.
__device__ inline uint32_t TransposeBytes(uint32_t word) {
  const int c = threadIdx.x % 4;
  uint32_t other = __shfl_xor_sync(~0u, word, 1);
  word = __byte_perm(word, other, c % 2 == 0 ? 0x6240 : 0x3715);
  other = __shfl_xor_sync(~0u, word, 2);
  return __byte_perm(word, other, c < 2 ? 0x5410 : 0x3276);
}

// The number of a row's vector in a plane.
__device__ inline int64_t VectorAt(const CudaKvPlane& plane, int64_t slot, int64_t head,
                                   int64_t position) {
  return (slot * plane.heads + head) * plane.capacity + position;
}

// Values to codes by instructions of full rate: adding 1.5 * 2^23 rounds half to even and leaves
// the integer in the low bits. Bounds that are integers may come before rounding.
struct KvCoder {
  static constexpr float kRounds = 12582912.0f;
  static constexpr uint32_t kRoundsBits = 0x4b400000u;
  float inverse, low, high;
  uint32_t zero_bits;

  __device__ KvCoder(float scale, float zero, float top)
      : inverse(1.0f / scale),
        low(-zero),
        high(top - zero),
        zero_bits(static_cast<uint32_t>(zero) - kRoundsBits) {}
  __device__ uint32_t operator()(float x) const {
    const float steps = fminf(fmaxf(__fmul_rn(x, inverse), low), high);
    return __float_as_uint(__fadd_rn(steps, kRounds)) + zero_bits;
  }
};

template <int kDim>
__device__ inline void Quantize(const Rows& rows, const CudaKvPlane& plane, KronClip clip,
                                int64_t head, const Vectors<kDim>& v) {
  const int c = threadIdx.x % 4;
  const float top = static_cast<float>((1 << plane.bits) - 1);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!rows.any[h]) continue;
    float lo = 0;
    float hi = 0;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      lo = fminf(lo, fminf(v[j][2 * h], v[j][2 * h + 1]));
      hi = fmaxf(hi, fmaxf(v[j][2 * h], v[j][2 * h + 1]));
    }
    lo = clip.min * AcrossRow(lo, [](float a, float b) { return fminf(a, b); });
    hi = clip.max * AcrossRow(hi, [](float a, float b) { return fmaxf(a, b); });
    float scale = __fdiv_rn(hi - lo, top);
    float zero = 0;
    if (scale > 0) {
      zero = rintf(__fdiv_rn(-lo, scale));
    } else {
      scale = 1;
    }
    const KvCoder code(scale, zero, top);
    uint32_t words[kDim / 32];
#pragma unroll
    for (int q = 0; q < kDim / 32; ++q) {
      uint32_t bytes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = v[4 * q + i] + 2 * h;
        bytes |= (code(pair[0]) | code(pair[1]) << 4) << (8 * i);
      }
      words[q] = TransposeBytes(bytes);
    }
    if (!rows.inside[h]) continue;
    const int64_t index = VectorAt(plane, rows.slot[h], head, rows.position[h]);
    uint32_t* out = reinterpret_cast<uint32_t*>(plane.data + index * (kDim / 2));
#pragma unroll
    for (int q = 0; q < kDim / 32; ++q) out[4 * q + c] = words[q];
    if (c == 0) {
      plane.scale[index] = scale;
      plane.zero[index] = static_cast<uint8_t>(zero);
    }
  }
}

// Rounds the warp's vectors to T and writes those of tokens below `end` to to(token), through
// shared memory.
template <typename T, int kDim, typename To>
__device__ inline void Store(const Rows& rows, int64_t first, int64_t end, const Vectors<kDim>& v,
                             uint8_t* vectors, const To& to) {
  constexpr int kChunks = kDim / 8;
  const int lane = threadIdx.x % 32;
  __syncwarp();  // all lanes have read the vectors that came
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (!rows.any[h]) continue;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      *reinterpret_cast<uint32_t*>(vectors + ChunkOffset<kDim>(lane / 4 + 8 * h, j) +
                                   lane % 4 * 4) = Element<T>::Pack(v[j][2 * h], v[j][2 * h + 1]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < kHeadTokens * kChunks; i += 32) {
    const int64_t token = first + i / kChunks;
    if (!rows.any[i / kChunks / 8] || token >= end) continue;
    reinterpret_cast<uint4*>(to(token))[i % kChunks] =
        *reinterpret_cast<const uint4*>(vectors + ChunkOffset<kDim>(i / kChunks, i % kChunks));
  }
}

}  // namespace flatquant::cuda
