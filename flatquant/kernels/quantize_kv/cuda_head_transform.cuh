#pragma once

#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/quantize_kv/cuda_kernels.h"
#include "flatquant/kernels/quantize_kv/cuda_vector_part.cuh"

// The product of 16 vectors of a head with a transform. Each warp of a CTA makes its share of the
// columns, which it holds in registers.
namespace flatquant::cuda {

constexpr int kHeadWarps = kHeadTokens * kVectorLanes / 32;

// Between lanes that hold parts of vectors and warps that multiply.
template <int kDim>
struct HeadProduct {
  // Rows as swizzle.cuh has them: the first operand.
  alignas(256) uint8_t vectors[kHeadTokens * kDim * 2];
  // The result. Eight more spread the rows of half a warp over the banks.
  alignas(16) float products[kHeadTokens][kDim + 8];

  // The lane's part of vector `row`, rounded to T.
  template <typename T>
  __device__ void Put(int row, const VectorPart<kDim>& x) {
    const auto bits = x.template ToBits<T>();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int byte = 2 * VectorPart<kDim>::At(half);
      *reinterpret_cast<typename VectorPart<kDim>::Words*>(
          vectors + ChunkOffset<kDim>(row, byte / 16) + byte % 16) = bits.half[half];
    }
  }
  __device__ VectorPart<kDim> Get(int row) const {
    return VectorPart<kDim>::FromFloats(products[row]);
  }
};

// A warp's columns of a transform that CudaPackHeadTransform has packed: for eight columns j and
// 32 rows s, lane (g, c) has 16 bytes, P[32 s + {2c, 8 + 2c, 16 + 2c, 24 + 2c} + {0, 1}][8 j + g].
template <int kDim>
struct HeadColumns {
  static constexpr int kBlocks = kDim / 8 / kHeadWarps;  // of eight columns
  static constexpr int kDepth = kDim / 32;

  uint4 fragment[kBlocks][kDepth];

  __device__ void Load(const uint4* packed) {
    const uint4* from = packed + threadIdx.x / 32 * (kBlocks * kDepth * 32) + threadIdx.x % 32;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int s = 0; s < kDepth; ++s) fragment[block][s] = __ldg(from + (block * kDepth + s) * 32);
    }
  }

  // Writes the warp's columns of the product with `vectors`.
  template <typename T>
  __device__ void Multiply(HeadProduct<kDim>& shared) const {
    const uint32_t from = SharedAddress(shared.vectors) + ByColumns<kDim>(threadIdx.x % 32);
    float d[kBlocks][4] = {};
#pragma unroll
    for (int s = 0; s < kDepth; ++s) {
      uint32_t a[2][4];
      LoadMatrix(a[0], from ^ (2 * s << 5));
      LoadMatrix(a[1], from ^ ((2 * s + 1) << 5));
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
        const uint4 b = fragment[block][s];
        Mma16<T>(d[block], a[0], b.x, b.y);
        Mma16<T>(d[block], a[1], b.z, b.w);
      }
    }
    const int row = threadIdx.x % 32 / 4;
    const int column = threadIdx.x / 32 * (kBlocks * 8) + threadIdx.x % 4 * 2;
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        *reinterpret_cast<float2*>(&shared.products[row + 8 * h][column + block * 8]) =
            make_float2(d[block][2 * h], d[block][2 * h + 1]);
      }
    }
  }
};

}  // namespace flatquant::cuda
