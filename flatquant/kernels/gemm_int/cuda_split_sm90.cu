#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_map.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_split.cuh"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Some tokens (a decode batch, a short prompt) on Hopper: y^T = W X^T, bound by the weights'
// bytes, so all CTAs should run at once and have their first stages filled while the kernel
// before still runs. A tile is 128, 256 or 384 rows of up to 64 tokens; the CTAs of a cluster
// share out its columns, as many CTAs as still fit on the GPU together. They add up their integer
// sums through each other's shared memory, each for its share of the tokens; the result does
// not depend on any order.

namespace flatquant::cuda {
namespace {

// Four sums of CTA `rank` of the cluster, between two barriers of it.
__device__ int4 LoadRemote(uint32_t shared, uint32_t rank) {
  int4 value;
  asm volatile(
      "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %4, %5;\n"
      "ld.shared::cluster.v4.s32 {%0,%1,%2,%3}, [remote];\n}"
      : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
      : "r"(shared), "r"(rank));
  return value;
}

// Calls finish(i, sum) for i = 0 .. min(count, kTokens) - 1, sum being that of four sums of `split`
// CTAs, up to kRanks, at `shared` + i * stride. Every load is on its way before the first is
// waited for.
template <int kTokens, int kRanks, typename Finish>
__device__ void SumRemote(uint32_t shared, int stride, int count, int split, const Finish& finish) {
  int4 parts[kTokens][kRanks];
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
#pragma unroll
    for (int rank = 0; rank < kRanks; ++rank) {
      const bool exists = i < count && rank < split;
      parts[i][rank] = exists ? LoadRemote(shared + i * stride, rank) : int4{};
    }
  }
#pragma unroll
  for (int i = 0; i < kTokens; ++i) {
    int4 sum = {};
#pragma unroll
    for (const int4& x : parts[i]) {
      sum = make_int4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
    }
    if (i < count) finish(i, sum);
  }
}

template <typename T, typename C>
__global__ void __launch_bounds__(kSplitThreads, C::kCtas)
    SplitKernel(const __grid_constant__ CUtensorMap act,
                const __grid_constant__ SplitParams params) {
  extern __shared__ uint8_t shared[];
  __shared__ float act_scale[C::kTokens];
  LetSuccessorStart();
  const CudaGemmIntArgs& args = params.args;
  const int split = params.split;
  const int rank = static_cast<int>(ClusterRank());
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int block0 = blockIdx.x / split * C::kBlocks;
  const int token0 = blockIdx.y * C::kTokens;
  const uint32_t base = (SharedAddress(shared) + 1023) & ~1023u;
  const uint32_t sums = base + C::kSumsAt;
  const SplitStages<C> stages = {base, params.chunks * rank / split,
                                 params.chunks * (rank + 1) / split};

  const int quad = threadIdx.x % C::kQuads * 4;
  const int64_t row = int64_t{block0} * 128 + quad;
  const int token = rank + static_cast<int>(threadIdx.x) / C::kQuads * split;
  const int token_step = C::kTokenStep * split;
  const int tokens = static_cast<int>(min(args.tokens - token0, int64_t{C::kTokens}));
  const bool finishes = threadIdx.x < C::kFinishing && row < args.weights.rows;
  float4 scale = {};
  float4 bias = {};
  // Of a thread's first tokens the residual comes while the products are being made.
  constexpr int kEarly = 2;
  uint2 residual[kEarly] = {};
  const auto load_residual = [&](int t) {
    if (args.residual == nullptr || t >= tokens || !finishes) return uint2{};
    return *reinterpret_cast<const uint2*>(static_cast<const T*>(args.residual) +
                                           (token0 + t) * args.y_stride + row);
  };

  if (warp == kSplitWarps) {
    if (lane == 0) {
      stages.Init();
      // The weights, alone, are not the predecessor's work.
      for (int k = stages.first; k < stages.Filled(); ++k) stages.LoadWeights(params, block0, k);
    }
  } else {
    // Not waited for here, where it comes behind the weights.
    if (finishes) scale = __ldg(reinterpret_cast<const float4*>(args.weights.scale + row));
    if (finishes && args.weights.bias != nullptr) {
      bias = __ldg(reinterpret_cast<const float4*>(args.weights.bias + row));
    }
  }
  __syncthreads();  // the barriers are initialised
  WaitForPredecessor();
  int32_t acc[C::kBlocks][C::kTokens / 2] = {};
  if (warp == kSplitWarps) {
    if (lane == 0) {
      const auto load_activations = [&](int k) {
        TensorLoad(stages.Act(k), &act, k * kSplitDepth, token0, stages.Full(k));
      };
      for (int k = stages.first; k < stages.Filled(); ++k) load_activations(k);
      for (int k = stages.Filled(); k < stages.last; ++k) {
        BarrierWait(stages.Empty(k), stages.Turn(k) ^ 1);
        stages.LoadWeights(params, block0, k);
        load_activations(k);
      }
    }
    __syncwarp();
  } else {
    if (threadIdx.x < tokens) act_scale[threadIdx.x] = args.act_scale[token0 + threadIdx.x];
#pragma unroll
    for (int i = 0; i < kEarly; ++i) residual[i] = load_residual(token + i * token_step);
    MultiplyAll(stages, acc);
  }
  // All stages have been read: the last ones by the products that have just completed.
  if constexpr (!C::kOwnSums) __syncthreads();
  if (warp < kSplitWarps) {
    const uint32_t at = sums + (lane % 4 * 2 * C::kSumStride + warp * 16 + lane / 4) * 4;
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
#pragma unroll
      for (int i = 0; i < C::kTokens / 2; ++i) {
        const int n = i / 4 * 8 + i % 2;
        asm volatile("st.shared.s32 [%0], %1;" ::"r"(
                         at + (n * C::kSumStride + block * 128 + i / 2 % 2 * 8) * 4),
                     "r"(acc[block][i])
                     : "memory");
      }
    }
  }
  ClusterSyncShared();
  if (finishes) {
    const auto finish = [&](int t, int4 sum, uint2 packed) {
      const float act = act_scale[t];
      const auto value = [&](int32_t x, float row_scale, float row_bias) {
        return static_cast<float>(x) * (act * (row_scale * kNibbleScale)) + row_bias;
      };
      const float y[4] = {value(sum.x, scale.x, bias.x), value(sum.y, scale.y, bias.y),
                          value(sum.z, scale.z, bias.z), value(sum.w, scale.w, bias.w)};
      const float2 low = Element<T>::ToFloat2(packed.x);
      const float2 high = Element<T>::ToFloat2(packed.y);
      // Four at once, up to the multiple of eight that may be written.
      *reinterpret_cast<uint2*>(static_cast<T*>(args.y) + (token0 + t) * args.y_stride + row) =
          make_uint2(Element<T>::Pack(y[0] + low.x, y[1] + low.y),
                     Element<T>::Pack(y[2] + high.x, y[3] + high.y));
    };
    // In groups of as many tokens as registers hold sums of the cluster's CTAs.
    const auto finish_groups = [&]<int kGroup, int kRanks>() {
      for (int first = 0; token + first * token_step < tokens; first += kGroup) {
        const int group = token + first * token_step;
        SumRemote<kGroup, kRanks>(
            sums + (group * C::kSumStride + quad) * 4, token_step * C::kSumStride * 4,
            (tokens - group + token_step - 1) / token_step, split, [&](int i, int4 sum) {
              const int t = group + i * token_step;
              finish(t, sum, first == 0 && i < kEarly ? residual[i % kEarly] : load_residual(t));
            });
      }
    };
    if (split > 4) {
      finish_groups.template operator()<2, 8>();
    } else if (split > 2) {
      finish_groups.template operator()<4, 4>();
    } else {
      finish_groups.template operator()<8, 2>();
    }
  }
  ClusterSyncAfterLoads();  // nobody leaves while others still read its sums
}

// By their size, clusters that the current device runs at once; asked once per kernel and
// device, which then also lets the kernel have its shared memory.
template <typename T, typename C>
std::array<int, kMostSplit + 1> ActiveClusters() {
  static std::mutex mutex;
  static std::map<int, std::array<int, kMostSplit + 1>> known;
  int device = 0;
  FLATQUANT_CUDA(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  AllowSharedMemory(SplitKernel<T, C>, C::kSharedBytes);
  std::array<int, kMostSplit + 1> active = {0, CurrentCudaDevice().sm_count * C::kCtas};
  for (int split = 2; split <= kMostSplit; ++split) {
    active[split] = MostActiveClusters(SplitKernel<T, C>, split, kSplitThreads, C::kSharedBytes);
  }
  return known[device] = active;
}

// How a configuration's CTAs share out the work.
struct SplitPlan {
  int split;
  int64_t ctas;
  int64_t blocks;  // of 128 rows and 128 columns that a CTA multiplies, one after the other
};

template <typename T, typename C>
SplitPlan MakePlan(const CudaGemmIntArgs& args) {
  const int chunks = static_cast<int>(CeilDiv(args.weights.cols, kSplitDepth));
  const int64_t tiles = CeilDiv(args.weights.rows, C::kRows) * CeilDiv(args.tokens, C::kTokens);
  const auto active = ActiveClusters<T, C>();
  // The largest split with which all CTAs run at once. Where not even whole tiles do, halves
  // shorten the last wave.
  int split = 2;
  for (int s = 1; s <= kMostSplit; ++s) {
    if (tiles <= active[s]) split = s;
  }
  split = std::min(split, chunks);
  const int64_t waves = CeilDiv(tiles, std::max(active[split], 1));
  return {split, tiles * split, waves * C::kBlocks * CeilDiv(chunks, split)};
}

template <typename T, typename C>
void Launch(const CudaGemmIntArgs& args, const SplitPlan& plan, CudaStream stream) {
  const CUtensorMap act =
      MakeTensorMap({args.act, CU_TENSOR_MAP_DATA_TYPE_UINT8, args.tokens, args.weights.cols,
                     args.act_stride, C::kTokens, kSplitDepth});
  const SplitParams params = {
      args, static_cast<int>(CeilDiv(args.weights.cols, kSplitDepth)),
      static_cast<int>(CudaGemmIntPaddedCols(args.weights.cols) / kSplitDepth),
      static_cast<int>(CudaGemmIntPaddedRows(args.weights.rows) / 128), plan.split};
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.weights.rows, C::kRows) * plan.split),
                  static_cast<unsigned>(CeilDiv(args.tokens, C::kTokens)));
  LaunchDependentClusters(SplitKernel<T, C>, grid, static_cast<unsigned>(plan.split), kSplitThreads,
                          C::kSharedBytes, stream, act, params);
  CheckCudaLaunch("GemmIntSplit");
}

template <typename C>
void Launch(const CudaGemmIntArgs& args, CudaStream stream) {
  ForElement(args.dtype, [&](auto element) {
    using T = decltype(element);
    Launch<T, C>(args, MakePlan<T, C>(args), stream);
  });
}

// Of two configurations the one whose CTAs multiply less one after the other, if it leaves room
// for the next kernel, which may have a CTA for each token, two to a multiprocessor: those that
// start after this wave are late by more than a flatter wave gains (64 tokens, gate and up
// projection of LLaMA-2-7B's shape: 2 us gained, a SwiGLU's site 9 us later).
template <typename Two, typename Three>
void LaunchFlatter(const CudaGemmIntArgs& args, CudaStream stream) {
  ForElement(args.dtype, [&](auto element) {
    using T = decltype(element);
    const SplitPlan two = MakePlan<T, Two>(args);
    const SplitPlan three = MakePlan<T, Three>(args);
    const int64_t room = CurrentCudaDevice().sm_count - three.ctas;
    if (three.blocks < two.blocks && 2 * room >= args.tokens) {
      Launch<T, Three>(args, three, stream);
    } else {
      Launch<T, Two>(args, two, stream);
    }
  });
}

}  // namespace

// Times on an H200 of a decode step's 128 linears (hidden size 4096) and what lies between
// them, tiles of 256 rows with a multiprocessor each against 128 rows and two CTAs of a
// multiprocessor: 16 tokens 1806 against 2032 us, 32 tokens 2197 (with tiles of 64 tokens)
// against 2092, 64 tokens 2391 against 2575. Stages fill the shared memory. Where tiles of 256
// rows leave multiprocessors without work (86 tiles: gate and up projection of LLaMA-2-7B's
// shape), tiles of 384 rows may split evenly (58 tiles, two CTAs each).
void GemmIntSplit(const CudaGemmIntArgs& args, CudaStream stream) {
  if (args.tokens <= 16) {
    LaunchFlatter<SplitConfig<16, 2, 8, 1>, SplitConfig<16, 3, 7, 1>>(args, stream);
  } else if (args.tokens <= 32) {
    Launch<SplitConfig<32, 1, 6, 2>>(args, stream);
  } else if (args.tokens <= 64) {
    LaunchFlatter<SplitConfig<64, 2, 8, 1>, SplitConfig<64, 3, 6, 1>>(args, stream);
  } else {
    // More tiles than multiprocessors: smaller ones leave fewer idle in the last wave.
    Launch<SplitConfig<64, 1, 6, 2>>(args, stream);
  }
}

}  // namespace flatquant::cuda
