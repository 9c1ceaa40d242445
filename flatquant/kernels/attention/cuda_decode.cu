#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/attention/cuda_widen.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"

// One token per sequence. Bound by the cache's bytes: each packed K and V vector is read
// once, by one warp, for all query heads of its group (up to eight, the rows of a
// tensor-core product; the other eight rows stay zero). Warps walk over blocks of 32
// positions with an online softmax, each with a ring of blocks in shared memory that
// asynchronous copies fill ahead. CTAs share a sequence (split KV) where sequences and
// heads alone would not fill the GPU, and a second kernel adds up their results.

namespace flatquant {
namespace {

constexpr int kWarps = 4;
constexpr int kBlock = 32;     // positions per step of a warp
constexpr int kGroupRows = 8;  // query heads per CTA
constexpr float kLog2E = 1.4426950408889634f;
constexpr int kSlots = 3;  // blocks in a warp's ring: two on their way, one in use
// CTAs to aim for per multiprocessor: what registers and shared memory let run at once.
constexpr int64_t kCtasPerSm = 3;

int64_t Splits(const CudaAttentionDecodeArgs& args) {
  const int64_t groups = args.k.heads * CeilDiv(args.heads / args.k.heads, kGroupRows);
  const int64_t wanted = CeilDiv(CurrentCudaDevice().sm_count * kCtasPerSm, groups * args.tokens);
  // At least one block of positions for each warp.
  return std::clamp<int64_t>(wanted, 1, CeilDiv(args.max_length, kWarps * kBlock));
}

// A share's result: sums of weights times V, relative to the share's largest score.
struct Partial {
  float top;  // log2 scale
  float sum;
};

template <int kDim>
struct Merge {
  float y[kWarps][kGroupRows][kDim];
  Partial partial[kWarps][kGroupRows];
};

// A block's K and V as the cache holds them: 32 vectors, scales and zero points each.
template <int kDim>
struct Block {
  static constexpr int kRow = kDim / 2;  // bytes of a vector
  uint8_t k[kBlock * kRow];
  uint8_t v[kBlock * kRow];  // position p at VRow(p)
  float k_scale[kBlock];
  float v_scale[kBlock];
  uint8_t k_zero[kBlock];
  uint8_t v_zero[kBlock];

  // Lanes that read together read positions 2 c of V, which would lie in one half of the
  // banks (a quarter for 64 elements): every other one changes places with its neighbour.
  static __device__ int VRow(int p) { return p ^ (p >> (kDim == 128 ? 1 : 2) & 1); }

  // Starts the copies of positions [first, first + 32); base + first is a multiple of 32.
  __device__ void Request(const CudaKvPlane& key, const CudaKvPlane& value, int64_t at) {
    const int lane = threadIdx.x % 32;
    const auto copy = [](void* to, const void* from) {
      cuda::CopyAsync16(static_cast<uint32_t>(__cvta_generic_to_shared(to)), from, 16);
    };
#pragma unroll
    for (int i = lane; i < kBlock * kRow / 16; i += 32) {
      copy(k + i * 16, key.data + at * kRow + i * 16);
      copy(v + VRow(i / (kRow / 16)) * kRow + i % (kRow / 16) * 16,
           value.data + at * kRow + i * 16);
    }
    if (lane < 8) {
      copy(k_scale + lane * 4, key.scale + at + lane * 4);
    } else if (lane < 16) {
      copy(v_scale + (lane - 8) * 4, value.scale + at + (lane - 8) * 4);
    } else if (lane < 18) {
      copy(k_zero + (lane - 16) * 16, key.zero + at + (lane - 16) * 16);
    } else if (lane < 20) {
      copy(v_zero + (lane - 18) * 16, value.zero + at + (lane - 18) * 16);
    }
  }
};

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

template <typename T, int kDim>
struct Warp {
  static constexpr int kRow = kDim / 2;
  static constexpr int kSteps = kDim / 16;
  static constexpr int kKeyWords = kDim / 32;    // a lane's share of a K vector
  static constexpr int kValueWords = kDim / 64;  // a lane's share of a V vector
  uint32_t q[kSteps][2];                         // rows g: the first operand's registers 0 and 2
  float y[kDim / 8][4] = {};
  float top = -INFINITY;
  float sum = 0;  // of this lane's columns

  // Lane (g, c) reads elements [c kDim / 4, (c + 1) kDim / 4) of a K vector. The order of
  // elements within the products is free as long as Q's is the same: word w, pair i holds
  // nibbles i and i + 4.
  __device__ void LoadQuery(const T* query, bool inside) {
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < kSteps; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int at = c * (kDim / 4) + s / 2 * 8 + s % 2 * 2 + h;
        q[s][h] = 0;
        if (!inside) continue;
        q[s][h] = Bits(query[at]) | Bits(query[at + 4]) << 16;
      }
    }
  }
  static __device__ uint32_t Bits(T x) { return reinterpret_cast<const uint16_t&>(x); }

  // score[t]: rows g, positions 8 t + 2 c and 8 t + 2 c + 1 of the block.
  __device__ void Scores(const Block<kDim>& block, float (&score)[4][4]) const {
    const int g = threadIdx.x % 32 / 4;
    const int c = threadIdx.x % 4;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      uint32_t key[kKeyWords];
      LoadWords(block.k + (8 * t + g) * kRow + c * (kRow / 4), key);
      const uint32_t zero_point = block.k_zero[8 * t + g];
      const auto zero = cuda::ZeroPair<T>(zero_point, zero_point);
#pragma unroll
      for (int w = 0; w < kKeyWords; ++w) {
        uint32_t pairs[4];
        cuda::WidenWord<T>(key[w], zero, pairs);
        const uint32_t a0[4] = {q[2 * w][0], 0, q[2 * w][1], 0};
        const uint32_t a1[4] = {q[2 * w + 1][0], 0, q[2 * w + 1][1], 0};
        cuda::Mma16<T>(score[t], a0, pairs[0], pairs[1]);
        cuda::Mma16<T>(score[t], a1, pairs[2], pairs[3]);
      }
    }
  }

  // Weights times V's scales span more than half's range; bfloat16 holds them, and
  // q - zero exactly. weight: of positions 16 u + {2 c, 2 c + 1, 2 c + 8, 2 c + 9}.
  __device__ void AddValues(const Block<kDim>& block, int u, const float (&weight)[4]) {
    using Wide = __nv_bfloat16;
    const int g = threadIdx.x % 32 / 4;
    const int first = 16 * u + threadIdx.x % 4 * 2;
    uint32_t value[4][kValueWords];
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      LoadWords(block.v + Block<kDim>::VRow(first + p / 2 * 8 + p % 2) * kRow + g * (kRow / 8),
                value[p]);
    }
    const uint8_t* zero = block.v_zero + first;
    const auto zero0 = cuda::ZeroPair<Wide>(zero[0], zero[1]);
    const auto zero1 = cuda::ZeroPair<Wide>(zero[8], zero[9]);
    const uint32_t a[4] = {cuda::Element<Wide>::Pack(weight[0], weight[1]), 0,
                           cuda::Element<Wide>::Pack(weight[2], weight[3]), 0};
#pragma unroll
    for (int w = 0; w < kValueWords; ++w) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Nibbles of two neighbouring positions side by side: pairs along k.
        const int select = half == 0 ? 0x5410 : 0x7632;
        uint32_t b0[4];
        uint32_t b1[4];
        cuda::WidenWord<Wide>(__byte_perm(value[0][w], value[1][w], select), zero0, b0);
        cuda::WidenWord<Wide>(__byte_perm(value[2][w], value[3][w], select), zero1, b1);
#pragma unroll
        for (int i = 0; i < 4; ++i) cuda::Mma16<Wide>(y[8 * w + 4 * half + i], a, b0[i], b1[i]);
      }
    }
  }

  // Positions [first, first + 32), those in [begin, end) counted.
  __device__ void Step(const Block<kDim>& block, int first, int begin, int end, float scale) {
    const int c = threadIdx.x % 4;
    float score[4][4] = {};
    Scores(block, score);
    const bool whole = first >= begin && first + kBlock <= end;
    float new_top = top;
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const float2 k_scale = *reinterpret_cast<const float2*>(block.k_scale + 8 * t + 2 * c);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        score[t][i] *= (i == 0 ? k_scale.x : k_scale.y) * scale;
        const int position = first + 8 * t + 2 * c + i;
        if (!whole && (position < begin || position >= end)) score[t][i] = -INFINITY;
        new_top = fmaxf(new_top, score[t][i]);
      }
    }
    new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 1));
    new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 2));
    const float base = new_top == -INFINITY ? 0.0f : new_top;
    if (__any_sync(~0u, new_top != top)) {  // soon it no longer grows
      const float shrink = cuda::Exp2(top - base);
      sum *= shrink;
#pragma unroll
      for (int j = 0; j < kDim / 8; ++j) {
        y[j][0] *= shrink;
        y[j][1] *= shrink;
      }
    }
    top = new_top;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float weight[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 v_scale =
            *reinterpret_cast<const float2*>(block.v_scale + 16 * u + 8 * i + 2 * c);
        const float w0 = cuda::Exp2(score[2 * u + i][0] - base);
        const float w1 = cuda::Exp2(score[2 * u + i][1] - base);
        sum += w0 + w1;
        // A masked position's scale may be anything.
        weight[2 * i] = w0 > 0 ? w0 * v_scale.x : 0.0f;
        weight[2 * i + 1] = w1 > 0 ? w1 * v_scale.y : 0.0f;
      }
      AddValues(block, u, weight);
    }
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kWarps * 32, kCtasPerSm)
    DecodeKernel(const __grid_constant__ CudaAttentionDecodeArgs args, int row_blocks) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int splits = gridDim.x;
  const int split = blockIdx.x;
  const int kv_head = blockIdx.y / row_blocks;
  const int group = static_cast<int>(args.heads / args.k.heads);
  const int head0 = kv_head * group + blockIdx.y % row_blocks * kGroupRows;
  const int rows = min(kGroupRows, (kv_head + 1) * group - head0);
  const int64_t token = blockIdx.z;
  const int length = args.lengths[token];
  const int begin = args.window > 0 ? max(0, length - static_cast<int>(args.window)) : 0;
  const int64_t base = (args.slots[token] * args.k.heads + kv_head) * args.k.capacity;

  // This CTA's share, in whole rounds of its warps.
  const int first = begin / kBlock * kBlock;
  constexpr int kRound = kWarps * kBlock;
  const int share = ((length - first + splits - 1) / splits + kRound - 1) / kRound * kRound;
  const int share_begin = first + split * share;
  const int share_end = min(length, share_begin + share);

  Warp<T, kDim> state;
  state.LoadQuery(static_cast<const T*>(args.q) + (token * args.heads + head0 + g) * kDim,
                  g < rows);
  Block<kDim>* ring = reinterpret_cast<Block<kDim>*>(shared) + warp * kSlots;
  const auto request = [&](int i) {
    const int at = share_begin + warp * kBlock + i * kRound;
    if (at < share_end) ring[i % kSlots].Request(args.k, args.v, base + at);
    cuda::CopyAsyncCommit();  // also when empty, so that groups count blocks
  };
  for (int i = 0; i < kSlots - 1; ++i) request(i);
  for (int i = 0; share_begin + warp * kBlock + i * kRound < share_end; ++i) {
    __syncwarp();  // all lanes are done with the slot that is filled next
    request(i + kSlots - 1);
    cuda::CopyAsyncWait<kSlots - 1>();
    __syncwarp();  // the lanes' copies are visible to each other
    state.Step(ring[i % kSlots], share_begin + warp * kBlock + i * kRound, begin, share_end,
               args.scale * kLog2E);
  }
  cuda::CopyAsyncWait<0>();
  __syncthreads();  // the rings' memory now takes the warps' results
  Merge<kDim>& merge = *reinterpret_cast<Merge<kDim>*>(shared);

  state.sum += __shfl_xor_sync(~0u, state.sum, 1);
  state.sum += __shfl_xor_sync(~0u, state.sum, 2);
  if (lane % 4 == 0) merge.partial[warp][g] = {state.top, state.sum};
  constexpr int kPerLane = kDim / 8;  // tile j, column n stands for element n kDim / 8 + j
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    merge.y[warp][g][lane % 4 * 2 * kPerLane + j] = state.y[j][0];
    merge.y[warp][g][(lane % 4 * 2 + 1) * kPerLane + j] = state.y[j][1];
  }
  __syncthreads();

  // [tokens, heads, splits] partials, then as many vectors.
  Partial* partials = static_cast<Partial*>(args.workspace);
  float* vectors = reinterpret_cast<float*>(partials + args.tokens * args.heads * splits);
  for (int i = threadIdx.x; i < rows * kDim; i += kWarps * 32) {
    const int row = i / kDim;
    Partial all = {-INFINITY, 0};
    for (int w = 0; w < kWarps; ++w) all.top = fmaxf(all.top, merge.partial[w][row].top);
    float y = 0;
    for (int w = 0; w < kWarps; ++w) {
      const Partial part = merge.partial[w][row];
      const float factor = part.sum > 0 ? cuda::Exp2(part.top - all.top) : 0.0f;
      all.sum += factor * part.sum;
      y += factor * merge.y[w][row][i % kDim];
    }
    const int64_t vector = token * args.heads + head0 + row;
    if (splits == 1) {
      static_cast<T*>(args.y)[vector * kDim + i % kDim] = cuda::Element<T>::FromFloat(y / all.sum);
      continue;
    }
    vectors[(vector * splits + split) * kDim + i % kDim] = y;
    if (i % kDim == 0) partials[vector * splits + split] = all;
  }
}

// A CTA per token and head, a thread per element.
template <typename T, int kDim>
__global__ void __launch_bounds__(kDim)
    CombineKernel(const Partial* partials, const float* vectors, int splits, T* y) {
  const int64_t vector = blockIdx.x;
  float top = -INFINITY;
  for (int s = 0; s < splits; ++s) {
    const Partial part = partials[vector * splits + s];
    if (part.sum > 0) top = fmaxf(top, part.top);
  }
  float sum = 0;
  float value = 0;
  for (int s = 0; s < splits; ++s) {
    const Partial part = partials[vector * splits + s];
    if (!(part.sum > 0)) continue;
    const float factor = cuda::Exp2(part.top - top);
    sum += factor * part.sum;
    value += factor * vectors[(vector * splits + s) * kDim + threadIdx.x];
  }
  y[vector * kDim + threadIdx.x] = cuda::Element<T>::FromFloat(value / sum);
}

}  // namespace

int64_t CudaAttentionWorkspaceBytes(const CudaAttentionDecodeArgs& args) {
  const int64_t splits = Splits(args);
  if (splits == 1) return 0;
  return args.tokens * args.heads * splits *
         (static_cast<int64_t>(sizeof(Partial)) + args.k.head_dim * 4);
}

void CudaAttentionDecode(const CudaAttentionDecodeArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.heads % args.k.heads == 0 && args.max_length <= args.k.capacity);
  FLATQUANT_CHECK(args.k.capacity % kBlock == 0 && args.v.capacity == args.k.capacity);
  if (args.tokens == 0) return;
  const int64_t splits = Splits(args);
  const int64_t row_blocks = CeilDiv(args.heads / args.k.heads, kGroupRows);
  const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(args.k.heads * row_blocks),
                  static_cast<unsigned>(args.tokens));
  cuda::ForHeadDim(args.k.head_dim, [&](auto dim) {
    cuda::ForElement(args.dtype, [&](auto element) {
      using T = decltype(element);
      constexpr int kDim = decltype(dim)::value;
      constexpr size_t kShared =
          std::max(kWarps * kSlots * sizeof(Block<kDim>), sizeof(Merge<kDim>));
      AllowSharedMemory(DecodeKernel<T, kDim>, kShared);
      DecodeKernel<T, kDim>
          <<<grid, kWarps * 32, kShared, stream>>>(args, static_cast<int>(row_blocks));
      if (splits == 1) return;
      const int64_t vectors = args.tokens * args.heads;
      const Partial* partials = static_cast<const Partial*>(args.workspace);
      CombineKernel<T, kDim><<<static_cast<unsigned>(vectors), kDim, 0, stream>>>(
          partials, reinterpret_cast<const float*>(partials + vectors * splits),
          static_cast<int>(splits), static_cast<T*>(args.y));
    });
  });
  CheckCudaLaunch("CudaAttentionDecode");
}

}  // namespace flatquant
