#include <algorithm>
#include <type_traits>

#include "flatquant/base/error.h"
#include "flatquant/kernels/attention/cuda_attention.h"
#include "flatquant/kernels/attention/cuda_check.h"
#include "flatquant/kernels/attention/cuda_decode_warp.cuh"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"

// One token per sequence. Bound by the cache's bytes: each K and V vector is read once, by
// one warp, for all query heads of its group (up to eight, the columns of a tensor-core
// product). Warps walk over blocks of positions with an online softmax, each with a ring
// of blocks in shared memory that asynchronous copies fill ahead. CTAs share a sequence
// (split KV) where sequences and heads alone would not fill the GPU, and a second kernel
// adds up their results.

namespace flatquant {
namespace {

constexpr int kWarps = 4;
constexpr int kGroupRows = 8;  // query heads per CTA
constexpr float kLog2E = 1.4426950408889634f;
constexpr int kSlots = 3;  // blocks in a warp's ring: two on their way, one in use

// Calls run(DecodeBlock{}) with the type that serves the arguments.
template <typename Run>
void ForBlock(const CudaAttentionDecodeArgs& args, const Run& run) {
  const auto for_formats = [&](auto element, auto dim) {
    using T = decltype(element);
    constexpr int kDim = decltype(dim)::value;
    if (args.k.packed() && args.v.packed()) {
      run(std::type_identity<cuda::DecodeBlock<T, kDim, true, true>>());
    } else if (args.k.packed()) {
      run(std::type_identity<cuda::DecodeBlock<T, kDim, true, false>>());
    } else if (args.v.packed()) {
      run(std::type_identity<cuda::DecodeBlock<T, kDim, false, true>>());
    } else {
      run(std::type_identity<cuda::DecodeBlock<T, kDim, false, false>>());
    }
  };
  cuda::ForHeadDim(args.k.head_dim, [&](auto dim) {
    cuda::ForElement(args.dtype, [&](auto element) { for_formats(element, dim); });
  });
}

// CTAs that run at once.
template <typename B>
int64_t Places() {
  return CurrentCudaDevice().sm_count * int64_t{B::kCtasPerSm};
}

// CTAs that share a sequence and group. The multiprocessors hold so many CTAs at once; what
// is left over waits for a place, so that one CTA too many doubles the time. A CTA's time
// is its rounds of blocks, and about one more to start and to end; adding up shares costs
// another kernel, about a round too.
template <typename B>
int64_t Splits(const CudaAttentionDecodeArgs& args) {
  const int64_t groups =
      args.k.heads * CeilDiv(args.heads / args.k.heads, kGroupRows) * args.tokens;
  const int64_t places = Places<B>();
  const int64_t rounds = CeilDiv(args.max_length, kWarps * B::kPositions);
  const auto time = [&](int64_t splits) {
    return CeilDiv(groups * splits, places) * (CeilDiv(rounds, splits) + 1) + (splits > 1 ? 1 : 0);
  };
  // More than twice as many CTAs as places bring nothing that fewer do not.
  const int64_t most = std::min(rounds, 2 * places / std::max<int64_t>(1, groups));
  int64_t best = 1;
  for (int64_t splits = 2; splits <= most; ++splits) {
    if (time(splits) < time(best)) best = splits;
  }
  return best;
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

template <typename T, int kDim, bool kPackedK, bool kPackedV>
__global__ void __launch_bounds__(kWarps * 32,
                                  cuda::DecodeBlock<T, kDim, kPackedK, kPackedV>::kCtasPerSm)
    DecodeKernel(const __grid_constant__ CudaAttentionDecodeArgs args, int row_blocks,
                 bool rehearses) {
  using B = cuda::DecodeBlock<T, kDim, kPackedK, kPackedV>;
  using V = decltype(B::v);
  constexpr int kBlock = B::kPositions;
  extern __shared__ __align__(256) uint8_t shared[];
  cuda::LetSuccessorStart();
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

  B* ring = reinterpret_cast<B*>(shared) + warp * kSlots;
  const auto request = [&](int i) {
    const int at = share_begin + warp * kBlock + i * kRound;
    if (at < share_end) ring[i % kSlots].Request(args, base + at, length - at);
    cuda::CopyAsyncCommit();  // also when empty, so that groups count blocks
  };
  // Of the cache, the predecessor's work is the last position alone.
  const auto is_old = [&](int i) {
    return share_begin + warp * kBlock + i * kRound + kBlock < length;
  };
  int requested = 0;
  for (; requested < kSlots - 1 && is_old(requested); ++requested) request(requested);
  // A first pass, of one step on the slot that nothing comes into yet, brings the instructions
  // into the caches, out of which the kernels before have pushed them. It is for CTAs that wait
  // for their turn, not for those that wait for a place.
  cuda::DecodeWarp<T, kDim, kPackedK, kPackedV> state = {};
  const int first_block = share_begin + warp * kBlock;
  for (bool counts = !rehearses;; counts = true) {
    if (counts) {
      cuda::WaitForPredecessor();
      for (; requested < kSlots - 1; ++requested) request(requested);
      state.Start(static_cast<const T*>(args.q) + (token * args.heads + head0 + g) * kDim, g < rows,
                  args.scale * kLog2E);
    }
    for (int i = 0; counts ? first_block + i * kRound < share_end : i < 1; ++i) {
      if (counts) {
        __syncwarp();  // all lanes are done with the slot that is filled next
        request(i + kSlots - 1);
        cuda::CopyAsyncWait<kSlots - 1>();
        __syncwarp();  // the lanes' copies are visible to each other
      }
      const int at = counts ? first_block + i * kRound : begin;
      state.Step(ring[counts ? i % kSlots : kSlots - 1], at, begin,
                 counts ? share_end : at + kBlock);
    }
    if (counts) break;
  }
  cuda::CopyAsyncWait<0>();
  __syncthreads();  // the rings' memory now takes the warps' results
  Merge<kDim>& merge = *reinterpret_cast<Merge<kDim>*>(shared);

#pragma unroll
  for (int i = 0; i < 2; ++i) {
#pragma unroll
    for (int step = 4; step < 32; step *= 2) {
      state.sum[i] += __shfl_xor_sync(~0u, state.sum[i], step);
    }
    const int row = lane % 4 * 2 + i;
    if (g == 0) merge.partial[warp][row] = {state.top[i], state.sum[i]};
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        merge.y[warp][row][V::OutputElement(m, h, g)] =
            V::Output(state.y, m, h, i) * __uint_as_float(state.unit);
      }
    }
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

// Over a CTA of kThreads, by all its threads; shared holds a number per warp and is free
// when all of them call it.
template <int kThreads, typename Combine>
__device__ float AcrossCta(float x, float (&shared)[kThreads / 32], const Combine& combine) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = combine(x, __shfl_xor_sync(~0u, x, step));
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = x;
  __syncthreads();
  x = shared[0];
#pragma unroll
  for (int i = 1; i < kThreads / 32; ++i) x = combine(x, shared[i]);
  return x;
}

// A CTA per token and head, a thread per element. A share without positions has a top of
// -infinity, a sum of 0 and a vector of zeros.
template <typename T, int kDim>
__global__ void __launch_bounds__(kDim)
    CombineKernel(const Partial* partials, const float* vectors, int splits, T* y) {
  extern __shared__ float factors[];  // [splits]
  __shared__ float tops[kDim / 32];
  __shared__ float sums[kDim / 32];
  cuda::LetSuccessorStart();
  cuda::WaitForPredecessor();
  const int64_t first = int64_t{blockIdx.x} * splits;
  // As many as most calls have are on their way before their factors are known.
  constexpr int kEarly = 16;
  float early[kEarly];
#pragma unroll
  for (int s = 0; s < kEarly; ++s) {
    early[s] = s < splits ? vectors[(first + s) * kDim + threadIdx.x] : 0;
  }
  float top = -INFINITY;
  for (int s = threadIdx.x; s < splits; s += kDim) top = fmaxf(top, partials[first + s].top);
  top = AcrossCta<kDim>(top, tops, [](float a, float b) { return fmaxf(a, b); });
  float sum = 0;
  for (int s = threadIdx.x; s < splits; s += kDim) {
    const Partial part = partials[first + s];
    factors[s] = cuda::Exp2(part.top - top);
    sum += factors[s] * part.sum;
  }
  // Its barrier also shows every thread the factors.
  sum = AcrossCta<kDim>(sum, sums, [](float a, float b) { return a + b; });
  float value = 0;
#pragma unroll
  for (int s = 0; s < kEarly; ++s) {
    if (s < splits) value += factors[s] * early[s];
  }
#pragma unroll 8  // so many loads are on their way together
  for (int s = kEarly; s < splits; ++s) {
    value += factors[s] * vectors[(first + s) * kDim + threadIdx.x];
  }
  y[int64_t{blockIdx.x} * kDim + threadIdx.x] = cuda::Element<T>::FromFloat(value / sum);
}

}  // namespace

int64_t CudaAttentionWorkspaceBytes(const CudaAttentionDecodeArgs& args) {
  // Enough for any formats of the planes: how a block is cut depends on nothing else.
  const int64_t splits = std::max(Splits<cuda::DecodeBlock<__half, 64, true, true>>(args),
                                  Splits<cuda::DecodeBlock<__half, 64, false, false>>(args));
  if (splits == 1) return 0;
  return args.tokens * args.heads * splits *
         (static_cast<int64_t>(sizeof(Partial)) + args.k.head_dim * 4);
}

void CudaAttentionDecode(const CudaAttentionDecodeArgs& args, CudaStream stream) {
  CheckCudaAttention(args);
  FLATQUANT_CHECK(args.max_length <= args.k.capacity);
  if (args.tokens == 0) return;
  const int64_t row_blocks = CeilDiv(args.heads / args.k.heads, kGroupRows);
  const auto launch = [&]<typename T, int kDim, bool kPackedK, bool kPackedV>(
                          std::type_identity<cuda::DecodeBlock<T, kDim, kPackedK, kPackedV>>) {
    constexpr size_t kShared =
        std::max(kWarps * kSlots * sizeof(cuda::DecodeBlock<T, kDim, kPackedK, kPackedV>),
                 sizeof(Merge<kDim>));
    const int64_t splits = Splits<cuda::DecodeBlock<T, kDim, kPackedK, kPackedV>>(args);
    const dim3 grid(static_cast<unsigned>(splits), static_cast<unsigned>(args.k.heads * row_blocks),
                    static_cast<unsigned>(args.tokens));
    const auto kernel = DecodeKernel<T, kDim, kPackedK, kPackedV>;
    const int64_t ctas = int64_t{grid.x} * grid.y * grid.z;
    const bool rehearses = ctas <= Places<cuda::DecodeBlock<T, kDim, kPackedK, kPackedV>>();
    const size_t bytes = rehearses ? EvenSharedMemory(ctas, kShared) : kShared;
    AllowSharedMemory(kernel, bytes);
    LaunchDependent(kernel, grid, kWarps * 32, bytes, stream, args, static_cast<int>(row_blocks),
                    rehearses);
    if (splits == 1) return;
    const int64_t vectors = args.tokens * args.heads;
    const Partial* partials = static_cast<const Partial*>(args.workspace);
    LaunchDependent(CombineKernel<T, kDim>, static_cast<unsigned>(vectors), kDim,
                    static_cast<size_t>(splits) * sizeof(float), stream, partials,
                    reinterpret_cast<const float*>(partials + vectors * splits),
                    static_cast<int>(splits), static_cast<T*>(args.y));
  };
  ForBlock(args, launch);
  CheckCudaLaunch("CudaAttentionDecode");
}

}  // namespace flatquant
