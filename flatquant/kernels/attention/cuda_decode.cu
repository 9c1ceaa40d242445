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
// positions with an online softmax; CTAs share a sequence (split KV) where sequences and
// heads alone would not fill the GPU, and a second kernel adds up their results.

namespace flatquant {
namespace {

constexpr int kWarps = 4;
constexpr int kBlock = 32;     // positions per step of a warp
constexpr int kGroupRows = 8;  // query heads per CTA
constexpr float kLog2E = 1.4426950408889634f;
// CTAs to aim for per multiprocessor: what registers let run at once.
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

template <typename T, int kDim>
struct Warp {
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

  // Positions [first, first + 32), those in [begin, end) counted.
  __device__ void Step(const CudaKvPlane& k, const CudaKvPlane& v, int64_t base, int first,
                       int begin, int end, float scale) {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    const int c = lane % 4;
    // Everything is requested before anything is used. Positions past the end are read
    // at the last one and then masked.
    uint32_t key[4][kKeyWords];
    float key_zero[4];
    uint32_t value[8][kValueWords];
    float key_scale[8], value_scale[8], value_zero[8];
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const int64_t at = base + min(first + 8 * t + g, end - 1);
      const uint8_t* from = k.data + at * (kDim / 2) + c * (kDim / 8);
      if constexpr (kKeyWords == 4) {
        const uint4 x = __ldg(reinterpret_cast<const uint4*>(from));
        key[t][0] = x.x, key[t][1] = x.y, key[t][2] = x.z, key[t][3] = x.w;
      } else {
        const uint2 x = __ldg(reinterpret_cast<const uint2*>(from));
        key[t][0] = x.x, key[t][1] = x.y;
      }
      key_zero[t] = k.zero[at];
    }
#pragma unroll
    for (int p = 0; p < 8; ++p) {  // position 8 (p / 2) + 2 c + p % 2
      const int64_t at = base + min(first + p / 2 * 8 + 2 * c + p % 2, end - 1);
      const uint8_t* from = v.data + at * (kDim / 2) + g * (kDim / 16);
      if constexpr (kValueWords == 2) {
        const uint2 x = __ldg(reinterpret_cast<const uint2*>(from));
        value[p][0] = x.x, value[p][1] = x.y;
      } else {
        value[p][0] = __ldg(reinterpret_cast<const uint32_t*>(from));
      }
      key_scale[p] = k.scale[at];
      value_scale[p] = v.scale[at];
      value_zero[p] = v.zero[at];
    }

    float score[4][4] = {};
#pragma unroll
    for (int t = 0; t < 4; ++t) {
      const auto zero = cuda::ZeroPair<T>(key_zero[t], key_zero[t]);
#pragma unroll
      for (int w = 0; w < kKeyWords; ++w) {
        uint32_t pairs[4];
        cuda::WidenWord<T>(key[t][w], zero, pairs);
        const uint32_t a0[4] = {q[2 * w][0], 0, q[2 * w][1], 0};
        const uint32_t a1[4] = {q[2 * w + 1][0], 0, q[2 * w + 1][1], 0};
        cuda::Mma16<T>(score[t], a0, pairs[0], pairs[1]);
        cuda::Mma16<T>(score[t], a1, pairs[2], pairs[3]);
      }
    }

    float tile_top = -INFINITY;
#pragma unroll
    for (int p = 0; p < 8; ++p) {
      const int position = first + p / 2 * 8 + 2 * c + p % 2;
      float& s = score[p / 2][p % 2];
      s = position >= begin && position < end ? s * (key_scale[p] * scale) : -INFINITY;
      tile_top = fmaxf(tile_top, s);
    }
    tile_top = fmaxf(tile_top, __shfl_xor_sync(~0u, tile_top, 1));
    tile_top = fmaxf(tile_top, __shfl_xor_sync(~0u, tile_top, 2));
    if (tile_top == -INFINITY) tile_top = top;  // nothing here; rows agree on it
    const float new_top = fmaxf(top, tile_top);
    const float shrink = new_top == -INFINITY ? 1.0f : exp2f(top - new_top);
    top = new_top;
    sum *= shrink;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      y[j][0] *= shrink;
      y[j][1] *= shrink;
    }

    // Weights times V's scales span more than half's range; bfloat16 holds them, and
    // q - zero exactly.
    using Wide = __nv_bfloat16;
#pragma unroll
    for (int u = 0; u < 2; ++u) {
      float weight[4];
#pragma unroll
      for (int p = 0; p < 4; ++p) {
        const float s = score[2 * u + p / 2][p % 2];
        const float x = s == -INFINITY ? 0.0f : exp2f(s - top);
        sum += x;
        weight[p] = x * value_scale[4 * u + p];
      }
      const uint32_t a[4] = {cuda::Element<Wide>::Pack(weight[0], weight[1]), 0,
                             cuda::Element<Wide>::Pack(weight[2], weight[3]), 0};
      const auto zero0 = cuda::ZeroPair<Wide>(value_zero[4 * u], value_zero[4 * u + 1]);
      const auto zero1 = cuda::ZeroPair<Wide>(value_zero[4 * u + 2], value_zero[4 * u + 3]);
#pragma unroll
      for (int w = 0; w < kValueWords; ++w) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          // Nibbles of two neighbouring positions side by side: pairs along k.
          const int select = half == 0 ? 0x5410 : 0x7632;
          uint32_t b0[4];
          uint32_t b1[4];
          cuda::WidenWord<Wide>(__byte_perm(value[4 * u][w], value[4 * u + 1][w], select), zero0,
                                b0);
          cuda::WidenWord<Wide>(__byte_perm(value[4 * u + 2][w], value[4 * u + 3][w], select),
                                zero1, b1);
#pragma unroll
          for (int i = 0; i < 4; ++i) cuda::Mma16<Wide>(y[8 * w + 4 * half + i], a, b0[i], b1[i]);
        }
      }
    }
  }
};

template <typename T, int kDim>
__global__ void __launch_bounds__(kWarps * 32, kCtasPerSm)
    DecodeKernel(const __grid_constant__ CudaAttentionDecodeArgs args, int row_blocks) {
  __shared__ Merge<kDim> merge;
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
  for (int at = share_begin + warp * kBlock; at < share_end; at += kRound) {
    state.Step(args.k, args.v, base, at, begin, share_end, args.scale * kLog2E);
  }

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
      const float factor = part.sum > 0 ? exp2f(part.top - all.top) : 0.0f;
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
    const float factor = exp2f(part.top - top);
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
  if (args.tokens == 0) return;
  const int64_t splits = Splits(args);
  const int64_t row_blocks = CeilDiv(args.heads / args.k.heads, kGroupRows);
  const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(args.k.heads * row_blocks),
                  static_cast<unsigned>(args.tokens));
  cuda::ForHeadDim(args.k.head_dim, [&](auto dim) {
    cuda::ForElement(args.dtype, [&](auto element) {
      using T = decltype(element);
      constexpr int kDim = decltype(dim)::value;
      DecodeKernel<T, kDim><<<grid, kWarps * 32, 0, stream>>>(args, static_cast<int>(row_blocks));
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
