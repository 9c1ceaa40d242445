#pragma once

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/quantize_kv/cuda_kernels.h"
#include "flatquant/kernels/quantize_kv/cuda_kv_coder.cuh"

// What a warp does with the vectors of one head of 16 tokens: it brings them into registers, as
// rows of a product on the tensor cores, norms and rotates them, and quantizes or rounds them on
// their way out.
namespace flatquant::cuda {

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

// Starts copying a head's vectors of the warp's tokens [first, first + 16), zeros beyond the last.
template <typename T, int kDim>
__device__ inline void RequestVectors(const CudaQuantizeKvArgs& args, int64_t first, int64_t head,
                                      uint8_t* to) {
  constexpr int kChunks = kDim / 8;
  constexpr int kStep = 32 / kChunks;  // rows
  const int row = threadIdx.x % 32 / kChunks;
  const int chunk = threadIdx.x % kChunks;
  const int inside = static_cast<int>(min(args.tokens - first, int64_t{kHeadTokens}));
  const T* from = static_cast<const T*>(args.qkv) + head * kDim + chunk * 8;
  if (row < inside) from += (first + row) * args.qkv_stride;
#pragma unroll
  for (int i = 0; i < kHeadTokens; i += kStep) {
    const bool exists = row + i < inside;
    CopyAsync16(SharedAddress(to) + ChunkOffset<kDim>(row + i, chunk),
                exists ? from + i * args.qkv_stride : from, exists ? 16 : 0);
  }
}

// The same of their angles, to cos, sin [16, kAngleStride].
template <int kDim>
__device__ inline void RequestAngles(const CudaQuantizeKvArgs& args, int64_t first, float* cos,
                                     float* sin) {
  constexpr int kChunks = kDim / 8;  // of four floats
#pragma unroll
  for (int i = threadIdx.x % 32; i < kHeadTokens * kChunks; i += 32) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < args.tokens;
    const int64_t from = inside ? args.positions[token] * int64_t{kDim / 2} + i % kChunks * 4 : 0;
    const int to = i / kChunks * kAngleStride<kDim> + i % kChunks * 4;
    CopyAsync16(SharedAddress(cos + to), args.cos + from, inside ? 16 : 0);
    CopyAsync16(SharedAddress(sin + to), args.sin + from, inside ? 16 : 0);
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

// Lane c of four holds byte i of four words: afterwards it holds word c, whose byte i
// came from lane i.
__device__ inline uint32_t TransposeBytes(uint32_t word) {
  const int c = threadIdx.x % 4;
  uint32_t other = __shfl_xor_sync(~0u, word, 1);
  word = __byte_perm(word, other, c % 2 == 0 ? 0x6240 : 0x3715);
  other = __shfl_xor_sync(~0u, word, 2);
  return __byte_perm(word, other, c < 2 ? 0x5410 : 0x3276);
}

template <int kDim>
__device__ inline void Quantize(const Rows& rows, const CudaKvPlane& plane, KronClip clip,
                                int64_t head, const Vectors<kDim>& v) {
  const int c = threadIdx.x % 4;
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
    const KvCoder code(AcrossRow(lo, [](float a, float b) { return fminf(a, b); }),
                       AcrossRow(hi, [](float a, float b) { return fmaxf(a, b); }), clip,
                       plane.bits);
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
    if (c == 0) code.StoreScale(plane, index);
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
