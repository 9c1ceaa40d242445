#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/gemm_int/cuda_flow.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Up to 8 tokens on Hopper: y^T = W X^T, bound by the weights' bytes, in one wave of CTAs,
// each a continuous flow of weights. A CTA has a share of the 16-row blocks and all columns;
// its warps share out the pairs of (two blocks, chunk of 128 columns) and add their integer
// sums to the CTA's, which shared memory holds for all of its rows. So there is one barrier
// before the flow, for the activations, and one after it, and none where rows end. Each warp
// has a ring of copies that it fills again itself; the first are on their way before the
// kernel before has ended. Loops that run a few times stay loops: a step's kernels push each
// other's instructions out of the caches.

namespace flatquant::cuda {
namespace {

// Starts copying the activations, zeros beyond their columns. Not by the engine that fills the
// rings: behind the rings' copies they would come last.
template <typename C>
__device__ void RequestActivations(const CudaGemmIntArgs& args, const FlowLayout<C>& layout,
                                   int chunks, uint32_t to) {
#pragma unroll 1
  for (int token = 0; token < layout.tokens; ++token) {
    const int8_t* from = args.act + token * args.act_stride;
#pragma unroll 1
    for (int at = threadIdx.x * 16; at < chunks * 128; at += C::kThreads * 16) {
      const bool inside = at < args.act_stride;
      CopyAsync16(to + token * layout.act_stride + at, inside ? from + at : from, inside ? 16 : 0);
    }
  }
}

// Adds a block's products with 8 tokens over a chunk to its sums.
__device__ inline void MultiplyBlock(const uint8_t* weight, const uint32_t (&act)[8],
                                     int32_t (&acc)[4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 x = *reinterpret_cast<const uint4*>(weight + half * 512);
    const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
    for (int s = 0; s < 2; ++s) {
      uint32_t a0, a1, a2, a3;
      WidenNibbles(words[2 * s], a0, a1);
      WidenNibbles(words[2 * s + 1], a2, a3);
      MmaInt8(acc, a0, a1, a2, a3, act[4 * half + 2 * s], act[4 * half + 2 * s + 1]);
    }
  }
}

// A chunk of the activations as second operands.
__device__ inline void LoadChunk(uint32_t act_row, int chunk, uint32_t (&act)[8]) {
  LoadMatrix(*reinterpret_cast<uint32_t(*)[4]>(&act[0]), act_row + chunk * 128);
  LoadMatrix(*reinterpret_cast<uint32_t(*)[4]>(&act[4]), act_row + chunk * 128 + 64);
}

// Registers for two CTAs, also where shared memory holds one: the others are for the kernel
// that starts beside this one.
template <typename T, typename C>
__global__ void __launch_bounds__(C::kThreads, 2)
    FlowKernel(const __grid_constant__ CudaGemmIntArgs args,
               const __grid_constant__ FlowLayout<C> layout) {
  extern __shared__ __align__(128) uint8_t shared[];
  LetSuccessorStart();
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int ctas = static_cast<int>(gridDim.x);
  const int all_blocks = static_cast<int>((args.weights.rows + 15) / 16);
  const int begin = all_blocks * static_cast<int>(blockIdx.x) / ctas;
  const int count = all_blocks * (static_cast<int>(blockIdx.x) + 1) / ctas - begin;
  const int chunks = static_cast<int>((args.weights.cols + 127) / 128);
  const int tokens = layout.tokens;
  const int first_slot = warp * C::kCopies;
  const FlowRing<C> ring = {args.weights.packed,
                            CudaGemmIntPaddedCols(args.weights.cols) / 128,
                            begin,
                            count,
                            base + first_slot * C::kCopyBytes,
                            base + layout.Barriers() + 8 * first_slot};
  // Before the rings' copies, or they, and the kernel's turn with them, would come behind those.
#pragma unroll 1
  for (int i = threadIdx.x; i < count * 4; i += C::kThreads) {
    CopyAsync16(base + layout.Scale() + 16 * i, args.weights.scale + begin * 16 + 4 * i, 16);
    if (args.weights.bias == nullptr) continue;
    CopyAsync16(base + layout.Bias() + 16 * i, args.weights.bias + begin * 16 + 4 * i, 16);
  }
  FlowWalk<C> ahead(chunks, warp);
  ring.Init();
#pragma unroll 1
  for (int slot = 0; slot < C::kCopies; ++slot) ring.Request(slot, ahead);

  int32_t* sums = reinterpret_cast<int32_t*>(shared + layout.Sums());
  const float* scale = reinterpret_cast<const float*>(shared + layout.Scale());
  const float* bias = reinterpret_cast<const float*>(shared + layout.Bias());
  float* act_scale = reinterpret_cast<float*>(shared + layout.ActScale());
#pragma unroll 1
  for (int i = threadIdx.x; i < layout.SumCount(); i += C::kThreads) sums[i] = 0;

  WaitForPredecessor();  // the weights, alone, are not its work
  RequestActivations(args, layout, chunks, base + layout.Act());
  CopyAsyncCommit();
  if (threadIdx.x < tokens) act_scale[threadIdx.x] = args.act_scale[threadIdx.x];
  // A thread's results: every kThreads-th of the CTA's, rows first. The residual of two, which
  // is all for most shapes, comes while the products are being made.
  constexpr int kEarly = 2;
  const int rows = count * 16;
  const int outputs = rows * tokens;
  const auto load_residual = [&](int i) {
    const int64_t row = begin * 16 + i % rows;
    if (args.residual == nullptr || i >= outputs || row >= args.weights.rows) return 0.0f;
    return Element<T>::ToFloat(
        static_cast<const T*>(args.residual)[i / rows * args.y_stride + row]);
  };
  float residual[kEarly];
#pragma unroll
  for (int j = 0; j < kEarly; ++j) residual[j] = load_residual(threadIdx.x + j * C::kThreads);
  CopyAsyncWait<0>();
  __syncthreads();

  // Tokens beyond the last one repeat it; their sums go nowhere.
  const uint32_t act_row =
      base + layout.Act() + min(lane % 8, tokens - 1) * layout.act_stride + lane / 8 * 16;
  FlowWalk<C> at(chunks, warp);
  int slot = 0;
  uint32_t parity = 0;
  const auto weights_of = [&](int of) {
    return shared + (first_slot + of) * C::kCopyBytes + lane * 16;
  };
  const auto take = [&] {  // the next copy: its slot, when it has come
    const int taken = slot;
    BarrierWait(ring.full + 8 * slot, parity);
    if (++slot == C::kCopies) {
      slot = 0;
      parity ^= 1;
    }
    return taken;
  };
#pragma unroll 1
  while (at.group * C::kBlocks < count) {
    const int group = at.group;
    // Of two blocks, or of one block's chunks in turn: a single chain of products would wait for
    // itself.
    int32_t acc[2][4] = {};
#pragma unroll 1
    while (at.group == group) {
      uint32_t act[8];
      LoadChunk(act_row, at.chunk, act);
      at.Advance();
      if constexpr (C::kBlocks == 2) {
        const int one = take();
        MultiplyBlock(weights_of(one), act, acc[0]);
        // Where the last group is one block, this multiplies what lies there; it goes nowhere.
        MultiplyBlock(weights_of(one) + kGemmIntBlockBytes, act, acc[1]);
        __syncwarp();
        ring.Request(one, ahead);
      } else {
        const bool is_pair = at.group == group;
        uint32_t next_act[8];
        LoadChunk(act_row, is_pair ? at.chunk : 0, next_act);
        const int one = take();
        const int two = is_pair ? take() : one;
#pragma unroll
        for (uint32_t& x : next_act) x = is_pair ? x : 0;
        MultiplyBlock(weights_of(one), act, acc[0]);
        MultiplyBlock(weights_of(two), next_act, acc[1]);
        __syncwarp();
        ring.Request(one, ahead);
        if (is_pair) {
          ring.Request(two, ahead);
          at.Advance();
        }
      }
    }
#pragma unroll
    for (int r = 0; r < C::kBlocks; ++r) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int token = lane % 4 * 2 + k % 2;
        if (group * C::kBlocks + r >= count || token >= tokens) continue;
        atomicAdd(sums + ((group * C::kBlocks + r) * tokens + token) * kFlowSumStride + lane / 4 +
                      k / 2 * 8,
                  C::kBlocks == 2 ? acc[r][k] : acc[0][k] + acc[1][k]);
      }
    }
  }
  __syncthreads();
  const auto finish = [&](int i, float add) {
    const int row = i % rows;
    const int token = i / rows;
    const int64_t y_row = begin * 16 + row;
    if (i >= outputs || y_row >= args.weights.rows) return;
    const int32_t sum = sums[(row / 16 * tokens + token) * kFlowSumStride + row % 16];
    const float factor = act_scale[token] * (scale[row] * kNibbleScale);
    const float offset = args.weights.bias != nullptr ? bias[row] : 0.0f;
    const float y = static_cast<float>(sum) * factor + offset + add;
    static_cast<T*>(args.y)[token * args.y_stride + y_row] = Element<T>::FromFloat(y);
  };
#pragma unroll
  for (int j = 0; j < kEarly; ++j) finish(threadIdx.x + j * C::kThreads, residual[j]);
#pragma unroll 1
  for (int i = threadIdx.x + kEarly * C::kThreads; i < outputs; i += C::kThreads) {
    finish(i, load_residual(i));
  }
}

// The kernel before has a multiprocessor to itself for a while: were that one counted upon, its
// CTAs would start when the others are half done. 4 places less took a decode step's gate and up
// projection of one token from 17 to 11 us (H200).
unsigned Ctas(const CudaGemmIntArgs& args, int per_multiprocessor) {
  const int64_t places = int64_t{CurrentCudaDevice().sm_count} * per_multiprocessor;
  return static_cast<unsigned>(
      std::clamp<int64_t>(places - kSparePlaces, 1, CeilDiv(args.weights.rows, 16)));
}

template <typename C>
FlowLayout<C> MakeLayout(const CudaGemmIntArgs& args) {
  const int64_t blocks = CeilDiv(args.weights.rows, 16);
  return {static_cast<int>(RoundUpTo(args.weights.cols, 128) + 16), static_cast<int>(args.tokens),
          static_cast<int>(CeilDiv(blocks, Ctas(args, C::kCtas)))};
}

// Whether kCtas CTAs fit on a multiprocessor.
template <typename C>
bool Fits(const CudaGemmIntArgs& args) {
  // Beyond this MakeLayout's numbers might overflow.
  if (std::max(args.weights.cols, args.weights.rows) > int64_t{1} << 22) return false;
  return MakeLayout<C>(args).Bytes() <= C::kMostBytes;
}

template <typename C>
void Launch(const CudaGemmIntArgs& args, CudaStream stream) {
  const FlowLayout<C> layout = MakeLayout<C>(args);
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = FlowKernel<decltype(element), C>;
    AllowSharedMemory(kernel, C::kMostBytes);
    LaunchDependent(kernel, Ctas(args, C::kCtas), C::kThreads,
                    static_cast<size_t>(std::max(layout.Bytes(), C::kLeastBytes)), stream, args,
                    layout);
  });
  CheckCudaLaunch("GemmIntFlow");
}

// Whether every CTA's share is one 16-row block, so that copies of two would be half empty.
bool IsSingle(const CudaGemmIntArgs& args) {
  return CeilDiv(args.weights.rows, 16) <= Ctas(args, FlowSingle::kCtas);
}

// Calls run(C{}) with the configuration for the arguments; false where none fits.
template <typename Run>
bool ForConfig(const CudaGemmIntArgs& args, const Run& run) {
  // With more tokens two CTAs' activations would often not fit.
  const bool narrow = args.tokens <= 2;
  if (narrow && IsSingle(args) && Fits<FlowSingle>(args)) return run(FlowSingle());
  if (narrow && Fits<FlowNarrow>(args)) return run(FlowNarrow());
  if (Fits<FlowWide>(args)) return run(FlowWide());
  return false;
}

}  // namespace

bool GemmIntFlowTakes(const CudaGemmIntArgs& args) {
  return args.tokens <= kFlowTokens && ForConfig(args, [](auto) { return true; });
}

void GemmIntFlow(const CudaGemmIntArgs& args, CudaStream stream) {
  const bool taken = ForConfig(args, [&](auto config) {
    Launch<decltype(config)>(args, stream);
    return true;
  });
  FLATQUANT_CHECK(taken && args.tokens <= kFlowTokens);
}

}  // namespace flatquant::cuda
