#pragma once

#include "flatquant/kernels/attention/cuda_swizzle.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/nibble_float.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

// A warp's block of K or V in shared memory, as the cache holds it, and how it becomes
// the second operand of tensor-core products. Both formats have the same members:
//
//   Request       starts the asynchronous copies
//   QueryElement  of (step, half): the first of the two elements that a lane's operand
//                 holds of Q; the other is kPairStep further
//   Score         Q K^T, with K's scales
//   AddValues     y += weights V, with V's scales
//   OutputElement of (tile, column) of y: which element of the vector it is
//
// The order of elements within the products is free as long as Q's is the same, so
// that a format takes the one that it reads best.
namespace flatquant::cuda {

inline __device__ void CopyToShared16(void* to, const void* from, int bytes) {
  CopyAsync16(static_cast<uint32_t>(__cvta_generic_to_shared(to)), from, bytes);
}

template <int kWords>
__device__ void LoadWords(const uint8_t* from, uint32_t (&words)[kWords]) {
  if constexpr (kWords == 4) {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    words[0] = x.x, words[1] = x.y, words[2] = x.z, words[3] = x.w;
  } else if constexpr (kWords == 2) {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    words[0] = x.x, words[1] = x.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// Nibbles, scales and zero points. Lane (g, c) reads elements [c kDim / 4, (c + 1) kDim / 4)
// of a K vector, word w, pair i holding nibbles i and i + 4, and elements
// [g kDim / 8, (g + 1) kDim / 8) of V vectors.
template <typename T, int kDim, int kPositions>
struct PackedPlane {
  static constexpr int kRow = kDim / 2;          // bytes of a vector
  static constexpr int kKeyWords = kDim / 32;    // a lane's share of a K vector
  static constexpr int kValueWords = kDim / 64;  // a lane's share of a V vector
  static constexpr int kPairStep = 4;

  alignas(16) uint8_t data[kPositions * kRow];  // position p at Row(p)
  float scale[kPositions];
  uint8_t zero[kPositions];

  // Lanes that read together read positions 2 c of V, which would lie in one half of the
  // banks (a quarter for 64 elements): every other one changes places with its neighbour.
  static __device__ int Row(int p) { return p ^ (p >> (kDim == 128 ? 1 : 2) & 1); }

  // Vectors [at, at + kPositions); at is a multiple of 16. All are in the cache's memory;
  // those beyond `inside` may hold anything, which as codes is some finite number.
  __device__ void Request(const CudaKvPlane& plane, int64_t at, int /*inside*/) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int i = lane; i < kPositions * kRow / 16; i += 32) {
      CopyToShared16(data + Row(i / (kRow / 16)) * kRow + i % (kRow / 16) * 16,
                     plane.data + at * kRow + i * 16, 16);
    }
    constexpr int kScales = kPositions / 4;
    if (lane < kScales) {
      CopyToShared16(scale + lane * 4, plane.scale + at + lane * 4, 16);
    } else if (lane < kScales + kPositions / 16) {
      const int i = (lane - kScales) * 16;
      CopyToShared16(zero + i, plane.zero + at + i, 16);
    }
  }

  static __device__ int QueryElement(int step, int half, int c) {
    return c * (kDim / 4) + step / 2 * 8 + step % 2 * 2 + half;
  }
  static __device__ int OutputElement(int tile, int column) { return column * (kDim / 8) + tile; }

  // score[t]: rows g, positions 8 t + 2 c and 8 t + 2 c + 1 of the block.
  __device__ void Score(const uint32_t (&q)[kDim / 16][2], float factor,
                        float (&score)[kPositions / 8][4]) const {
    const int g = threadIdx.x % 32 / 4;
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int t = 0; t < kPositions / 8; ++t) {
      uint32_t key[kKeyWords];
      LoadWords(data + Row(8 * t + g) * kRow + c * (kRow / 4), key);
      const uint32_t zero_point = zero[8 * t + g];
      const auto zeros = ZeroPair<T>(zero_point, zero_point);
#pragma unroll
      for (int w = 0; w < kKeyWords; ++w) {
        uint32_t pairs[4];
        WidenWord<T>(key[w], zeros, pairs);
        const uint32_t a0[4] = {q[2 * w][0], 0, q[2 * w][1], 0};
        const uint32_t a1[4] = {q[2 * w + 1][0], 0, q[2 * w + 1][1], 0};
        Mma16<T>(score[t], a0, pairs[0], pairs[1]);
        Mma16<T>(score[t], a1, pairs[2], pairs[3]);
      }
      const float2 k_scale = *reinterpret_cast<const float2*>(scale + 8 * t + 2 * c);
      score[t][0] *= k_scale.x * factor;
      score[t][1] *= k_scale.y * factor;
    }
  }

  // weight: of positions 16 u + {2 c, 2 c + 1, 2 c + 8, 2 c + 9}. Times V's scales they span
  // more than half's range; bfloat16 holds them, and q - zero exactly.
  __device__ void AddValues(int u, float (&weight)[4], float (&y)[kDim / 8][4]) const {
    using Wide = __nv_bfloat16;
    const int g = threadIdx.x % 32 / 4;
    const int first = 16 * u + threadIdx.x % 4 * 2;
    uint32_t value[4][kValueWords];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      const int position = first + p / 2 * 8 + p % 2;
      LoadWords(data + Row(position) * kRow + g * (kRow / 8), value[p]);
      // A masked position's scale may be anything.
      weight[p] = weight[p] > 0 ? weight[p] * scale[position] : 0.0f;
    }
    const auto zero0 = ZeroPair<Wide>(zero[first], zero[first + 1]);
    const auto zero1 = ZeroPair<Wide>(zero[first + 8], zero[first + 9]);
    const uint32_t a[4] = {Element<Wide>::Pack(weight[0], weight[1]), 0,
                           Element<Wide>::Pack(weight[2], weight[3]), 0};
#pragma unroll
    for (int w = 0; w < kValueWords; ++w) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Nibbles of two neighbouring positions side by side: pairs along the depth.
        const int select = half == 0 ? 0x5410 : 0x7632;
        uint32_t b0[4];
        uint32_t b1[4];
        WidenWord<Wide>(__byte_perm(value[0][w], value[1][w], select), zero0, b0);
        WidenWord<Wide>(__byte_perm(value[2][w], value[3][w], select), zero1, b1);
#pragma unroll
        for (int i = 0; i < 4; ++i) Mma16<Wide>(y[8 * w + 4 * half + i], a, b0[i], b1[i]);
      }
    }
  }
};

// 16-bit elements, swizzled.
template <typename T, int kDim, int kPositions>
struct WidePlane {
  static constexpr int kPairStep = 1;

  alignas(256) uint8_t data[kPositions * kDim * 2];

  // Zeros beyond `inside`: what memory holds there may be no number, and a weight of 0
  // would not hide it.
  __device__ void Request(const CudaKvPlane& plane, int64_t at, int inside) {
    constexpr int kChunks = kDim / 8;
    const uint8_t* from = plane.data + at * (kDim * 2);
#pragma unroll
    for (int i = threadIdx.x % 32; i < kPositions * kChunks; i += 32) {
      CopyToShared16(data + ChunkOffset<kDim>(i / kChunks, i % kChunks), from + i * 16,
                     i / kChunks < inside ? 16 : 0);
    }
  }

  static __device__ int QueryElement(int step, int half, int c) {
    return 16 * step + 8 * half + 2 * c;
  }
  static __device__ int OutputElement(int tile, int column) { return 8 * tile + column; }

  __device__ void Score(const uint32_t (&q)[kDim / 16][2], float factor,
                        float (&score)[kPositions / 8][4]) const {
    const uint32_t from =
        static_cast<uint32_t>(__cvta_generic_to_shared(data)) + KeyOffset<kDim>(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < kPositions / 16; ++n) {
#pragma unroll
      for (int s = 0; s < kDim / 16; ++s) {
        uint32_t b[4];
        LoadMatrix(b, (from ^ (s << 5)) + n * 16 * kDim * 2);
        const uint32_t a[4] = {q[s][0], 0, q[s][1], 0};
        Mma16<T>(score[2 * n], a, b[0], b[1]);
        Mma16<T>(score[2 * n + 1], a, b[2], b[3]);
      }
    }
#pragma unroll
    for (int t = 0; t < kPositions / 8; ++t) {
      score[t][0] *= factor;
      score[t][1] *= factor;
    }
  }

  __device__ void AddValues(int u, float (&weight)[4], float (&y)[kDim / 8][4]) const {
    const uint32_t from =
        static_cast<uint32_t>(__cvta_generic_to_shared(data)) + ValueOffset<kDim>(threadIdx.x % 32);
    const uint32_t a[4] = {Element<T>::Pack(weight[0], weight[1]), 0,
                           Element<T>::Pack(weight[2], weight[3]), 0};
#pragma unroll
    for (int j = 0; j < kDim / 8; j += 2) {
      uint32_t b[4];
      LoadMatrixTransposed(b, (from ^ (j << 4)) + u * 16 * kDim * 2);
      Mma16<T>(y[j], a, b[0], b[1]);
      Mma16<T>(y[j + 1], a, b[2], b[3]);
    }
  }
};

}  // namespace flatquant::cuda
