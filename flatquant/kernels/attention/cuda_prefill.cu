#include "flatquant/base/error.h"
#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/attention/cuda_widen.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"

// Many tokens of one sequence: blocked attention with an online softmax in registers. A
// CTA takes 64 tokens of one query head, 16 for each warp; two CTAs per multiprocessor
// cover each other's barriers. K and V come packed, 64 positions at a time, and are
// widened once per CTA to q - zero (exact in 16 bits) in shared memory; K's scale
// multiplies scores, V's the weights. The next block's bytes are on their way in registers
// while this one is multiplied.

namespace flatquant {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kTokens = kWarps * 16;
constexpr int kBlock = 64;  // positions
constexpr float kLog2E = 1.4426950408889634f;

// Weights times V's scales span more than half's range; bfloat16 holds them.
using Wide = __nv_bfloat16;

// Two buffers of a block's K and V in shared memory: rows of kDim 16-bit elements, the
// 16-byte chunk c of row r at chunk c ^ (r % 8), so that eight rows' chunks lie in
// different banks. Within eight elements their order is 0 4 1 5 2 6 3 7, which is how
// nibbles widen.
template <int kDim>
struct Shared {
  uint8_t k[2][kBlock * kDim * 2];
  uint8_t v[2][kBlock * kDim * 2];
  float k_scale[2][kBlock];
  float v_scale[2][kBlock];
};

template <int kDim>
__device__ uint32_t ChunkOffset(int row, int chunk) {
  return row * (kDim * 2) + ((chunk ^ (row % 8)) << 4);
}

// A thread's share of a block, still packed.
template <int kDim>
struct Packed {
  static constexpr int kChunksPerRow = kDim / 32;  // 32 nibbles each
  static constexpr int kChunks = kBlock * kChunksPerRow / kThreads;
  static constexpr int kRowStep = kThreads / kChunksPerRow;  // rows between a thread's chunks

  uint4 k[kChunks], v[kChunks];
  uint32_t k_zero[kChunks], v_zero[kChunks];
  float k_scale, v_scale;

  // Positions past the end are read at the last one; scores mask them.
  __device__ void Load(const CudaAttentionPrefillArgs& args, int64_t base, int first, int end,
                       float scale) {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int row = threadIdx.x / kChunksPerRow + j * kRowStep;
      const int64_t at = base + min(first + row, end - 1);
      const int64_t byte = at * (kDim / 2) + threadIdx.x % kChunksPerRow * 16;
      k[j] = __ldg(reinterpret_cast<const uint4*>(args.k.data + byte));
      v[j] = __ldg(reinterpret_cast<const uint4*>(args.v.data + byte));
      k_zero[j] = args.k.zero[at];
      v_zero[j] = args.v.zero[at];
    }
    const int i = threadIdx.x;
    if (i < kBlock) {
      const int64_t at = base + min(first + i, end - 1);
      k_scale = args.k.scale[at] * scale;
      v_scale = args.v.scale[at];
    }
  }

  template <typename T>
  static __device__ void StoreRow(uint8_t* to, int row, uint4 packed, uint32_t zero) {
    const int chunk = threadIdx.x % kChunksPerRow * 4;
    const uint32_t words[4] = {packed.x, packed.y, packed.z, packed.w};
    const auto zeros = cuda::ZeroPair<T>(zero, zero);
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t pairs[4];
      cuda::WidenWord<T>(words[w], zeros, pairs);
      *reinterpret_cast<uint4*>(to + ChunkOffset<kDim>(row, chunk + w)) =
          make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
    }
  }

  template <typename T>
  __device__ void Store(Shared<kDim>& shared, int buffer) const {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int row = threadIdx.x / kChunksPerRow + j * kRowStep;
      StoreRow<T>(shared.k[buffer], row, k[j], k_zero[j]);
      StoreRow<Wide>(shared.v[buffer], row, v[j], v_zero[j]);
    }
    if (threadIdx.x < kBlock) {
      shared.k_scale[buffer][threadIdx.x] = k_scale;
      shared.v_scale[buffer][threadIdx.x] = v_scale;
    }
  }
};

// A warp's 16 tokens (rows g and g + 8 of its products).
template <typename T, int kDim>
struct Warp {
  uint32_t q[kDim / 16][4];
  float y[kDim / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of this lane's columns

  static __device__ uint32_t Bits(T x) { return reinterpret_cast<const uint16_t&>(x); }

  __device__ void LoadQuery(const T* const (&rows)[2]) {
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* row = rows[i % 2];
        const int at = 16 * s + i / 2 * 8 + c;
        q[s][i] = row == nullptr ? 0 : Bits(row[at]) | Bits(row[at + 4]) << 16;
      }
    }
  }

  __device__ void Scores(uint32_t k, float (&score)[kBlock / 8][4]) const {
    const int lane = threadIdx.x % 32;
    // Chunk numbers are bits of the address: further chunks are an exclusive or away.
    const uint32_t from = k + ChunkOffset<kDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
#pragma unroll
    for (int n = 0; n < kBlock / 16; ++n) {
#pragma unroll
      for (int s = 0; s < kDim / 16; ++s) {
        uint32_t b[4];
        cuda::LoadMatrix(b, (from ^ (s << 5)) + n * 16 * kDim * 2);
        cuda::Mma16<T>(score[2 * n], q[s], b[0], b[1]);
        cuda::Mma16<T>(score[2 * n + 1], q[s], b[2], b[3]);
      }
    }
  }

  // Scores become weights, relative to the new top; y and sum follow it.
  __device__ void Softmax(float (&score)[kBlock / 8][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float new_top = top[h];
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
        new_top = fmaxf(new_top, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
      }
      new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 1));
      new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 2));
      const float base = new_top == -INFINITY ? 0.0f : new_top;  // a row that sees nothing yet
      if (__any_sync(~0u, new_top != top[h])) {                  // soon it no longer grows
        const float shrink = cuda::Exp2(top[h] - base);
        sum[h] *= shrink;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          y[j][2 * h] *= shrink;
          y[j][2 * h + 1] *= shrink;
        }
      }
      top[h] = new_top;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = score[j][2 * h + i];
          s = cuda::Exp2(s - base);
          sum[h] += s;
        }
      }
    }
  }

  __device__ void Values(uint32_t v, const float* v_scale, const float (&weight)[kBlock / 8][4]) {
    const int lane = threadIdx.x % 32;
    const int c = lane % 4;
    const uint32_t from = v + ChunkOffset<kDim>(lane / 8 % 2 * 8 + lane % 8, lane / 16);
#pragma unroll
    for (int u = 0; u < kBlock / 16; ++u) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 scale = *reinterpret_cast<const float2*>(v_scale + 16 * u + 8 * i + 2 * c);
        const float* w = weight[2 * u + i];
        a[2 * i] = cuda::Element<Wide>::Pack(w[0] * scale.x, w[1] * scale.y);
        a[2 * i + 1] = cuda::Element<Wide>::Pack(w[2] * scale.x, w[3] * scale.y);
      }
#pragma unroll
      for (int j = 0; j < kDim / 8; j += 2) {
        uint32_t b[4];
        cuda::LoadMatrixTransposed(b, (from ^ (j << 4)) + u * 16 * kDim * 2);
        cuda::Mma16<Wide>(y[j], a, b[0], b[1]);
        cuda::Mma16<Wide>(y[j + 1], a, b[2], b[3]);
      }
    }
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    PrefillKernel(const __grid_constant__ CudaAttentionPrefillArgs args) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared<kDim>& shared = *reinterpret_cast<Shared<kDim>*>(raw);
  const int lane = threadIdx.x % 32;
  const int c = lane % 4;
  const int head = blockIdx.x;
  const int kv_head = head / static_cast<int>(args.heads / args.k.heads);
  // The last tokens see most positions: they start first.
  const int token0 = (gridDim.y - 1 - blockIdx.y) * kTokens;
  const int tokens = static_cast<int>(args.tokens);
  const int position0 = static_cast<int>(args.first_position) + token0;
  const int window = static_cast<int>(args.window);
  const int64_t base = (args.slot * args.k.heads + kv_head) * args.k.capacity;
  const int begin = window > 0 ? max(0, position0 - window + 1) / kBlock * kBlock : 0;
  const int end = position0 + min(kTokens, tokens - token0);
  const float scale = args.scale * kLog2E;

  const int row = threadIdx.x / 32 * 16 + lane / 4;  // and row + 8
  const T* query[2];
  for (int h = 0; h < 2; ++h) {
    const int64_t token = token0 + row + 8 * h;
    query[h] = token < tokens ? static_cast<const T*>(args.q) + (token * args.heads + head) * kDim
                              : nullptr;
  }
  Warp<T, kDim> state;
  state.LoadQuery(query);

  Packed<kDim> next;
  next.Load(args, base, begin, end, scale);
  next.template Store<T>(shared, 0);
  __syncthreads();
  int buffer = 0;
  for (int first = begin; first < end; first += kBlock, buffer ^= 1) {
    const bool has_next = first + kBlock < end;
    if (has_next) next.Load(args, base, first + kBlock, end, scale);
    float score[kBlock / 8][4] = {};
    state.Scores(static_cast<uint32_t>(__cvta_generic_to_shared(shared.k[buffer])), score);
    const bool whole = first + kBlock <= position0 + 1 &&
                       (window == 0 || first > position0 + kTokens - 1 - window);
#pragma unroll
    for (int j = 0; j < kBlock / 8; ++j) {
      const float2 k_scale =
          *reinterpret_cast<const float2*>(shared.k_scale[buffer] + 8 * j + 2 * c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[j][i] *= i % 2 == 0 ? k_scale.x : k_scale.y;
      }
    }
    if (!whole) {
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int seen = position0 + row + i / 2 * 8 - (first + 8 * j + 2 * c + i % 2);
          if (seen < 0 || (window > 0 && seen >= window)) score[j][i] = -INFINITY;
        }
      }
    }
    state.Softmax(score);
    state.Values(static_cast<uint32_t>(__cvta_generic_to_shared(shared.v[buffer])),
                 shared.v_scale[buffer], score);
    // The other buffer was last read before the barrier that ended the round before.
    if (has_next) next.template Store<T>(shared, buffer ^ 1);
    __syncthreads();
  }

#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = state.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const int64_t token = token0 + row + 8 * h;
    if (token >= tokens) continue;
    const float factor = 1.0f / sum;
    T* y = static_cast<T*>(args.y) + (token * args.heads + head) * kDim + c;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      y[8 * j] = cuda::Element<T>::FromFloat(state.y[j][2 * h] * factor);
      y[8 * j + 4] = cuda::Element<T>::FromFloat(state.y[j][2 * h + 1] * factor);
    }
  }
}

}  // namespace

void CudaAttentionPrefill(const CudaAttentionPrefillArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.heads % args.k.heads == 0);
  FLATQUANT_CHECK(args.first_position + args.tokens <= args.k.capacity);
  if (args.tokens == 0) return;
  const dim3 grid(static_cast<unsigned>(args.heads),
                  static_cast<unsigned>(CeilDiv(args.tokens, kTokens)));
  cuda::ForHeadDim(args.k.head_dim, [&](auto dim) {
    cuda::ForElement(args.dtype, [&](auto element) {
      constexpr int kDim = decltype(dim)::value;
      const auto kernel = PrefillKernel<decltype(element), kDim>;
      AllowSharedMemory(kernel, sizeof(Shared<kDim>));
      kernel<<<grid, kThreads, sizeof(Shared<kDim>), stream>>>(args);
    });
  });
  CheckCudaLaunch("CudaAttentionPrefill");
}

}  // namespace flatquant
