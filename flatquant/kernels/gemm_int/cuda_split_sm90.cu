#include <type_traits>

#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_map.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Some tokens (a decode batch, a short prompt) on Hopper: 128 rows x 64 tokens per tile,
// too few tiles to fill the GPU and bound by the weights' bytes, so two or four CTAs, a
// cluster, share a tile's columns. They add up their integer sums through each other's
// shared memory, each for its share of the tokens; the result does not depend on any order.

namespace flatquant::cuda {
namespace {

constexpr int kRows = 128;
constexpr int kTokens = 64;
constexpr int kDepth = 128;
constexpr int kActBytes = kTokens * kDepth;
constexpr int kStageBytes = kActBytes + kGemmIntTileBytes;
// 96 KB in flight, and two CTAs fit on a multiprocessor: 192 KB, several times what the
// latency of memory asks for, because a short walk along the columns is mostly start-up.
constexpr int kStages = 6;
constexpr int kThreads = 2 * 128 + 32;  // multiplying warpgroups, a loading warp
// Sums are left where the stages were: [64 tokens][128 rows + 4], the padding against
// bank conflicts.
constexpr int kSumStride = kRows + 4;
constexpr int kSharedBytes = 1024 + kStages * kStageBytes + 128;
static_assert(kTokens * kSumStride * 4 <= kStages * kStageBytes);

struct Params {
  CudaGemmIntArgs args;
  int chunks;  // of 128 columns, all of them
};

__device__ int4 LoadRemote(uint32_t shared, uint32_t rank) {
  int4 value;
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.s32 {%0,%1,%2,%3}, [remote];\n}"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "r"(shared), "r"(rank)
      : "memory");
  return value;
}

// What a multiplying thread finishes: four rows of two tokens.
template <int kSplit>
struct Share {
  static constexpr int kParts = kTokens / kSplit * kRows / 4 / 256;
  float act_scale[kParts];
  float4 scale;
  float4 bias;
};

template <typename T, int kSplit>
__global__ void __cluster_dims__(kSplit, 1, 1) __launch_bounds__(kThreads, 2)
    SplitKernel(const __grid_constant__ CUtensorMap act, const __grid_constant__ Params params) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (SharedAddress(shared) + 1023) & ~1023u;
  const uint32_t barriers = base + kStages * kStageBytes;
  const auto act_at = [&](int stage) { return base + stage * kActBytes; };
  const auto weight_at = [&](int stage) {
    return base + kStages * kActBytes + stage * kGemmIntTileBytes;
  };
  const auto full = [&](int stage) { return barriers + 8 * stage; };
  const auto empty = [&](int stage) { return barriers + 8 * (kStages + stage); };
  LetSuccessorStart();
  const uint32_t rank = ClusterRank();
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(full(i), 1);
      BarrierInit(empty(i), 8);
    }
    BarrierInitFence();
  }
  __syncthreads();
  const int row_tile = blockIdx.x / kSplit;
  const int token0 = blockIdx.y * kTokens;
  // Pairs of chunks are shared out; a rank may have none.
  const int pairs = params.chunks / 2;
  const int first = 2 * (pairs * static_cast<int>(rank) / kSplit);
  const int last = 2 * (pairs * (static_cast<int>(rank) + 1) / kSplit);

  int32_t acc[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) acc[i] = 0;
  if (warp == 8) {
    if (lane == 0) {
      const uint8_t* weight =
          params.args.weights.packed + int64_t{row_tile} * params.chunks * kGemmIntTileBytes;
      const auto load_weights = [&](int k) {
        const int stage = (k - first) % kStages;
        BarrierExpect(full(stage), kStageBytes);
        BulkLoad(weight_at(stage), weight + int64_t{k} * kGemmIntTileBytes, kGemmIntTileBytes,
                 full(stage));
      };
      const auto load_activations = [&](int k) {
        const int stage = (k - first) % kStages;
        TensorLoad(act_at(stage), &act, k * kDepth, token0, full(stage));
      };
      // The ring is empty, and the weights, alone, are not the predecessor's work.
      const int filled = min(last, first + kStages);
      for (int k = first; k < filled; ++k) load_weights(k);
      WaitForPredecessor();
      for (int k = first; k < filled; ++k) load_activations(k);
      for (int k = filled; k < last; ++k) {
        BarrierWait(empty((k - first) % kStages), (k - first) / kStages % 2 ^ 1);
        load_weights(k);
        load_activations(k);
      }
    }
    __syncwarp();
  } else {
    WaitForPredecessor();
    uint32_t a0[16];
    uint32_t a1[16];
    const auto step = [&](uint32_t(&a)[16], int k) {
      const int stage = (k - first) % kStages;
      BarrierWait(full(stage), (k - first) / kStages % 2);
      const uint32_t packed = weight_at(stage) + warp * kGemmIntBlockBytes + lane * 16;
      uint32_t words[8];
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
                   : "r"(packed));
      asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
                   : "=r"(words[4]), "=r"(words[5]), "=r"(words[6]), "=r"(words[7])
                   : "r"(packed + 512));
#pragma unroll
      for (int i = 0; i < 8; ++i) WidenNibbles(words[i], a[2 * i], a[2 * i + 1]);
#pragma unroll
      for (int i = 0; i < 16; ++i) WgmmaPin(a[i]);
      WgmmaFence();
#pragma unroll
      for (int s = 0; s < 4; ++s) {
        WgmmaInt8<64>::Run(acc, a[4 * s], a[4 * s + 1], a[4 * s + 2], a[4 * s + 3],
                           SwizzledOperand(act_at(stage) + 32 * s), k > first || s > 0);
      }
      WgmmaCommit();
      WgmmaWait<1>();
      __syncwarp();  // all lanes' reads come before the arrival
      if (k > first && lane == 0) BarrierArrive(empty((k - 1 - first) % kStages));
    };
    for (int k = first; k < last; k += 2) {
      step(a0, k);
      step(a1, k + 1);
    }
    WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < 32; ++i) WgmmaPin(acc[i]);
  }
  // Scales are on their way while the cluster gathers.
  const CudaGemmIntArgs& args = params.args;
  const int64_t row = int64_t{row_tile} * kRows + threadIdx.x % 32 * 4;
  const int share_token = static_cast<int>(rank) * (kTokens / kSplit) + warp;
  Share<kSplit> share = {};
  if (warp < 8) {
    share.scale = __ldg(reinterpret_cast<const float4*>(args.weights.scale + row));
    share.scale = make_float4(share.scale.x * kNibbleScale, share.scale.y * kNibbleScale,
                              share.scale.z * kNibbleScale, share.scale.w * kNibbleScale);
    if (args.weights.bias != nullptr) {
      share.bias = __ldg(reinterpret_cast<const float4*>(args.weights.bias + row));
    }
#pragma unroll
    for (int part = 0; part < Share<kSplit>::kParts; ++part) {
      const int64_t m = token0 + share_token + 8 * part;
      share.act_scale[part] = m < args.tokens ? __ldg(args.act_scale + m) : 0;
    }
  }
  // All stages have been read: the last ones by the products that have just completed.
  __syncthreads();
  if (warp < 8) {
    const uint32_t at = base + (lane % 4 * 2 * kSumStride + warp * 16 + lane / 4) * 4;
#pragma unroll
    for (int i = 0; i < 32; ++i) {
      const int token = i / 4 * 8 + i % 2;
      asm volatile("st.shared.s32 [%0], %1;" ::"r"(at + (token * kSumStride + i / 2 % 2 * 8) * 4),
                   "r"(acc[i])
                   : "memory");
    }
  }
  ClusterSync();
  if (warp < 8) {
#pragma unroll
    for (int part = 0; part < Share<kSplit>::kParts; ++part) {
      const int token = share_token + 8 * part;
      const int64_t m = token0 + token;
      int4 sum = {};
#pragma unroll
      for (int other = 0; other < kSplit; ++other) {
        const int4 x = LoadRemote(base + (token * kSumStride + threadIdx.x % 32 * 4) * 4, other);
        sum = make_int4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
      }
      if (m >= args.tokens) continue;
      const float act = share.act_scale[part];
      const float y[4] = {static_cast<float>(sum.x) * (act * share.scale.x) + share.bias.x,
                          static_cast<float>(sum.y) * (act * share.scale.y) + share.bias.y,
                          static_cast<float>(sum.z) * (act * share.scale.z) + share.bias.z,
                          static_cast<float>(sum.w) * (act * share.scale.w) + share.bias.w};
      // Four at once, up to the multiple of eight that may be written.
      if (row >= args.weights.rows) continue;
      const int64_t at = m * args.y_stride + row;
      float2 low = {};
      float2 high = {};
      if (args.residual != nullptr) {
        const uint2 packed =
            *reinterpret_cast<const uint2*>(static_cast<const T*>(args.residual) + at);
        low = Element<T>::ToFloat2(packed.x);
        high = Element<T>::ToFloat2(packed.y);
      }
      *reinterpret_cast<uint2*>(static_cast<T*>(args.y) + at) =
          make_uint2(Element<T>::Pack(y[0] + low.x, y[1] + low.y),
                     Element<T>::Pack(y[2] + high.x, y[3] + high.y));
    }
  }
  ClusterSync();  // nobody leaves while others still read its sums
}

}  // namespace

void GemmIntSplit(const CudaGemmIntArgs& args, CudaStream stream) {
  const CUtensorMap act = MakeTensorMap({args.act, CU_TENSOR_MAP_DATA_TYPE_UINT8, args.tokens,
                                         args.weights.cols, args.act_stride, kTokens, kDepth});
  const Params params = {args, static_cast<int>(CudaGemmIntPaddedCols(args.weights.cols) / kDepth)};
  const int64_t row_tiles = CeilDiv(args.weights.rows, kRows);
  const int64_t token_tiles = CeilDiv(args.tokens, kTokens);
  const auto launch = [&](auto element, auto split) {
    constexpr int kSplit = decltype(split)::value;
    const dim3 grid(static_cast<unsigned>(row_tiles * kSplit), static_cast<unsigned>(token_tiles));
    const auto kernel = SplitKernel<decltype(element), kSplit>;
    AllowSharedMemory(kernel, kSharedBytes);
    LaunchDependent(kernel, grid, kThreads, kSharedBytes, stream, act, params);
  };
  // Few tiles are split further: the GPU runs two CTAs per multiprocessor at once.
  const bool few = row_tiles * token_tiles * 4 <= 3 * CurrentCudaDevice().sm_count;
  ForElement(args.dtype, [&](auto element) {
    if (few) {
      launch(element, std::integral_constant<int, 4>());
    } else {
      launch(element, std::integral_constant<int, 2>());
    }
  });
  CheckCudaLaunch("GemmIntSplit");
}

}  // namespace flatquant::cuda
