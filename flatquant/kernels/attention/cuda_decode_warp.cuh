#pragma once

#include <type_traits>

#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/attention/cuda_held_plane.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/nibble_float.cuh"

// A warp's part of decoding: blocks of positions, one after the other, for the query heads of a
// group.
namespace flatquant::cuda {

// K and V of a warp's step. Vectors of 16 bits are four times as long as packed ones: half
// the positions, so that the rings of two CTAs fit on a multiprocessor.
template <typename T, int kDim, bool kPackedK, bool kPackedV>
struct DecodeBlock {
  static constexpr int kPositions = kPackedK && kPackedV ? 32 : 16;
  // CTAs to aim for per multiprocessor: what registers and shared memory let run at once.
  static constexpr int kCtasPerSm = kPackedK && kPackedV ? 4 : 2;
  using Packed = PackedPlane<kDim, kPositions>;
  using Wide = WidePlane<T, kDim, kPositions>;
  std::conditional_t<kPackedK, Packed, Wide> k;
  std::conditional_t<kPackedV, Packed, Wide> v;

  __device__ void Request(const CudaAttentionArgs& args, int64_t at, int inside) {
    k.Request(args.k, at, inside);
    v.Request(args.v, at, inside);
  }
};

// A warp's share of a group of heads, in the layout of cuda_held_plane.cuh: this lane has
// the heads 2 c and 2 c + 1.
template <typename T, int kDim, bool kPackedK, bool kPackedV>
struct DecodeWarp {
  using B = DecodeBlock<T, kDim, kPackedK, kPackedV>;
  static constexpr int kBlock = B::kPositions;
  using Key = decltype(B::k);
  uint32_t q[kDim / 16][2];  // second operands: head g
  float factor[2];           // of scores, on log2's scale: this lane's heads
  float query_sum[2];        // of their queries, times factor; where K is packed
  float y[decltype(B::v)::kTiles][4];
  uint32_t unit;  // of y, a power of two, as a float's bits
  float top[2];
  float sum[2];  // of this lane's positions

  // scale: of scores, on log2's scale.
  __device__ void Start(const T* query, bool inside, float scale) {
    LoadQuery(query, inside, scale);
    unit = decltype(B::v)::kFirstUnit;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      top[i] = -INFINITY;
      sum[i] = 0;
    }
#pragma unroll
    for (auto& tile : y) {
#pragma unroll
      for (float& x : tile) x = 0;
    }
  }

  __device__ void LoadQuery(const T* query, bool inside, float scale) {
    const int c = threadIdx.x % 4;
    Key::LoadQuery(query, inside, q);
    factor[0] = factor[1] = scale;
    query_sum[0] = query_sum[1] = 0;
    if constexpr (Key::kIsPacked) {
      const float own = scale * NarrowQuery();
      const float own_sum = own * QuerySum();
      for (int i = 0; i < 2; ++i) {
        factor[i] = __shfl_sync(~0u, own, (2 * c + i) * 4);
        query_sum[i] = __shfl_sync(~0u, own_sum, (2 * c + i) * 4);
      }
    }
  }

  // Brings q into what a packed Key asks for: divides it by the power of two below its largest
  // element, which is returned, and half 1 by 16 more. Nothing but what is 2^20 times smaller
  // than that element loses bits.
  __device__ float NarrowQuery() {
    float largest = 0;
    for (const auto& pair : q) {
      for (const uint32_t bits : pair) {
        const float2 x = Element<T>::ToFloat2(bits);
        largest = fmaxf(largest, fmaxf(fabsf(x.x), fabsf(x.y)));
      }
    }
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    // Its exponent, kept where the inverse is a normal number too, and a factor in nibbles' units.
    const uint32_t power =
        ::min(::max(__float_as_uint(largest) & 0x7f800000u, 1u << 23), 229u << 23);
    const float inverse = __uint_as_float((254u << 23) - power);
    for (auto& pair : q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 x = Element<T>::ToFloat2(pair[h]);
        const float by = h == 0 ? inverse : inverse * 0x1p-4f;
        pair[h] = Element<__half>::Pack(x.x * by, x.y * by);
      }
    }
    return __uint_as_float(power);
  }

  // Of the head that this lane holds a part of, narrowed.
  __device__ float QuerySum() const {
    float sum = 0;
    for (const auto& pair : q) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const float2 x = Element<__half>::ToFloat2(pair[h]);
        sum += (x.x + x.y) * (h == 0 ? 1.0f : 16.0f);
      }
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  }

  // Positions [first, first + kBlock), those in [begin, end) counted.
  __device__ void Step(B& block, int first, int begin, int end) {
    const bool is_edge = first < begin || first + kBlock > end;
    if (is_edge) block.v.Clear(begin - first, end - first);
    float score[kBlock / 16][4] = {};
    block.k.Score(q, factor, query_sum, score);
    if (is_edge) {
#pragma unroll
      for (int i = 0; i < kBlock / 4; ++i) {
        const int position = first + i / 4 * 16 + i % 4 / 2 * 8 + threadIdx.x % 32 / 4;
        if (position < begin || position >= end) score[i / 4][i % 4] = -INFINITY;
      }
    }
    float base[2];
    float shrink[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float new_top = top[i];
#pragma unroll
      for (int m = 0; m < kBlock / 16; ++m) {
        new_top = fmaxf(new_top, fmaxf(score[m][i], score[m][2 + i]));
      }
#pragma unroll
      for (int step = 4; step < 32; step *= 2) {
        new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, step));
      }
      base[i] = new_top == -INFINITY ? 0.0f : new_top;
      shrink[i] = Exp2(top[i] - base[i]);
      top[i] = new_top;
    }
    const float unit_shrink = block.v.GrowUnit(unit);
    // Soon neither tops nor the unit grow any more.
    if (__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f || unit_shrink != 1.0f)) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        sum[i] *= shrink[i];
        const float y_shrink = shrink[i] * unit_shrink;
#pragma unroll
        for (auto& tile : y) {
          tile[i] *= y_shrink;
          tile[2 + i] *= y_shrink;
        }
      }
    }
#pragma unroll
    for (int u = 0; u < kBlock / 16; ++u) {
      float weight[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        weight[i] = Exp2(score[u][i] - base[i % 2]);
        sum[i % 2] += weight[i];
      }
      block.v.AddValues(u, weight, unit, y);
    }
  }
};

}  // namespace flatquant::cuda
