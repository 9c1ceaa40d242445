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
// before still runs. A tile is 128 or 256 rows of up to 64 tokens; the CTAs of a cluster share
// out its columns, as many CTAs as still fit on the GPU together. They add up their integer
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

// Of all CTAs of the cluster; every load is on its way before the first is waited for.
__device__ int4 SumRemote(uint32_t shared, int split) {
  int4 parts[kMostSplit];
#pragma unroll
  for (int rank = 0; rank < kMostSplit; ++rank) {
    parts[rank] = rank < split ? LoadRemote(shared, rank) : int4{};
  }
  int4 sum = {};
#pragma unroll
  for (const int4& x : parts) {
    sum = make_int4(sum.x + x.x, sum.y + x.y, sum.z + x.z, sum.w + x.w);
  }
  return sum;
}

template <typename T, typename C>
__global__ void __launch_bounds__(kSplitThreads, C::kCtas)
    SplitKernel(const __grid_constant__ CUtensorMap act,
                const __grid_constant__ SplitParams params) {
  extern __shared__ uint8_t shared[];
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
  float4 scale = {};
  float4 bias = {};
  float act_scale[C::kEarly] = {};
  uint2 residual[C::kEarly] = {};
  const auto load_output = [&](int t, float& one_scale, uint2& one_residual) {
    if (t >= tokens || row >= args.weights.rows) return;
    one_scale = args.act_scale[token0 + t];
    if (args.residual == nullptr) return;
    one_residual = *reinterpret_cast<const uint2*>(static_cast<const T*>(args.residual) +
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
    scale = __ldg(reinterpret_cast<const float4*>(args.weights.scale + row));
    if (args.weights.bias != nullptr) {
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
#pragma unroll
    for (int i = 0; i < C::kEarly; ++i) {
      load_output(token + i * token_step, act_scale[i], residual[i]);
    }
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
  ClusterSync();
  if (warp < kSplitWarps && row < args.weights.rows) {
    const auto finish = [&](int t, float act, uint2 packed) {
      if (t >= tokens) return;
      const int4 sum = SumRemote(sums + (t * C::kSumStride + quad) * 4, split);
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
#pragma unroll
    for (int i = 0; i < C::kEarly; ++i) finish(token + i * token_step, act_scale[i], residual[i]);
    for (int t = token + C::kEarly * token_step; t < tokens; t += token_step) {
      float late_scale = 0;
      uint2 late_residual = {};
      load_output(t, late_scale, late_residual);
      finish(t, late_scale, late_residual);
    }
  }
  ClusterSync();  // nobody leaves while others still read its sums
}

// By their size, clusters that the current device runs at once; asked once per kernel and
// device.
template <typename T, typename C>
std::array<int, kMostSplit + 1> ActiveClusters() {
  static std::mutex mutex;
  static std::map<int, std::array<int, kMostSplit + 1>> known;
  int device = 0;
  FLATQUANT_CUDA(cudaGetDevice(&device));
  const std::lock_guard<std::mutex> lock(mutex);
  const auto found = known.find(device);
  if (found != known.end()) return found->second;
  std::array<int, kMostSplit + 1> active = {0, CurrentCudaDevice().sm_count * C::kCtas};
  for (int split = 2; split <= kMostSplit; ++split) {
    active[split] = MostActiveClusters(SplitKernel<T, C>, split, kSplitThreads, C::kSharedBytes);
  }
  return known[device] = active;
}

template <typename C>
void Launch(const CudaGemmIntArgs& args, CudaStream stream) {
  const CUtensorMap act =
      MakeTensorMap({args.act, CU_TENSOR_MAP_DATA_TYPE_UINT8, args.tokens, args.weights.cols,
                     args.act_stride, C::kTokens, kSplitDepth});
  const int chunks = static_cast<int>(CeilDiv(args.weights.cols, kSplitDepth));
  const int64_t row_tiles = CeilDiv(args.weights.rows, C::kRows);
  const int64_t token_tiles = CeilDiv(args.tokens, C::kTokens);
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = SplitKernel<decltype(element), C>;
    AllowSharedMemory(kernel, C::kSharedBytes);
    const auto active = ActiveClusters<decltype(element), C>();
    // The largest split with which all CTAs run at once. Where not even whole tiles do, halves
    // shorten the last wave.
    int split = 2;
    for (int s = 1; s <= kMostSplit; ++s) {
      if (row_tiles * token_tiles <= active[s]) split = s;
    }
    split = std::min(split, chunks);
    const SplitParams params = {
        args, chunks, static_cast<int>(CudaGemmIntPaddedCols(args.weights.cols) / kSplitDepth),
        split};
    LaunchDependentClusters(
        kernel, dim3(static_cast<unsigned>(row_tiles * split), static_cast<unsigned>(token_tiles)),
        static_cast<unsigned>(split), kSplitThreads, C::kSharedBytes, stream, act, params);
  });
  CheckCudaLaunch("GemmIntSplit");
}

}  // namespace

// Times on an H200 of a decode step's 128 linears (hidden size 4096) and what lies between
// them, tiles of 256 rows with a multiprocessor each against 128 rows and two CTAs of a
// multiprocessor: 16 tokens 1806 against 2032 us, 32 tokens 2197 (with tiles of 64 tokens)
// against 2092, 64 tokens 2391 against 2575. Stages fill the shared memory.
void GemmIntSplit(const CudaGemmIntArgs& args, CudaStream stream) {
  if (args.tokens <= 16) {
    Launch<SplitConfig<16, 2, 8, 1>>(args, stream);
  } else if (args.tokens <= 32) {
    Launch<SplitConfig<32, 1, 6, 2>>(args, stream);
  } else if (args.tokens <= 64) {
    Launch<SplitConfig<64, 2, 8, 1>>(args, stream);
  } else {
    // More tiles than multiprocessors: smaller ones leave fewer idle in the last wave.
    Launch<SplitConfig<64, 1, 6, 2>>(args, stream);
  }
}

}  // namespace flatquant::cuda
