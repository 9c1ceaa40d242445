#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Few tokens on Hopper: y^T = W X^T, bound by the weights' bytes, as one stream of copies
// that never drains. Each multiprocessor has a CTA with its share of the 16-row blocks, cut
// into segments of some blocks. A segment's chunks of 128 columns are shared out among the
// multiplying warps, each with a ring of chunks in shared memory that it refills itself; a
// ring goes on from one segment to the next. Finishing warps add scales, bias and residual
// to a segment's sums while the next segment is being multiplied. All activations lie in
// shared memory. Partial sums are integers; adding them in any order gives the same result.

namespace flatquant::cuda {
namespace {

// More are left to GemmIntSplit: here every CTA reads all of the activations.
constexpr int64_t kMostTokens = 16;

// What may be tuned, by blocks of 8 tokens.
template <int kTokenBlocks>
struct Tuning {
  // Of 16 rows, in a segment: a copy is so many KB. Fewer make short copies, more make
  // segments ragged where a CTA has few blocks (4096 rows: two).
  static constexpr int kBlocks = 2;
  // Multiplying: enough to keep up with memory several times over, few enough that each has
  // some chunks of a row (of 32 with 4096 columns).
  static constexpr int kWarps = 8;
  // Chunks in a warp's ring, at most: 96 KB in all, over twice what bandwidth times latency
  // asks of a multiprocessor, which leaves room for the CTAs of the kernel before.
  static constexpr int kSlots = 6;
  static constexpr int kCtasPerSm = 1;
  // Asked into L2 ahead of the ring while the kernel before still runs, per CTA: with the
  // rings about 20 MB, less than half of L2.
  static constexpr int kPrefetchBytes = 64 << 10;
};

constexpr int kFewestSlots = 3;  // with less in flight the ring waits for memory
constexpr int kFinishWarps = 4;
constexpr int kFinishThreads = kFinishWarps * 32;
// Activations arrive in so many parts along the columns, each with a barrier: products of
// the first columns need not wait for the last.
constexpr int kActParts = 8;
// What the CTAs of a multiprocessor may have together; the system takes a KB of each one's part.
constexpr int kSharedPerSm = 228 << 10;

// Where things lie in shared memory, in bytes from its begin.
template <int kTokenBlocks>
struct Layout : Tuning<kTokenBlocks> {
  using Tuning<kTokenBlocks>::kBlocks;
  using Tuning<kTokenBlocks>::kWarps;
  static constexpr int kRows = 16 * kBlocks;
  static constexpr int kSlotBytes = kBlocks * kGemmIntBlockBytes;
  // A segment's sums [tokens][rows]; four more spread a fragment's tokens over banks.
  static constexpr int kSumStride = kRows + 4;
  static constexpr int kSumCount = 8 * kTokenBlocks * kSumStride;
  static constexpr int kMostBytes = kSharedPerSm / Tuning<kTokenBlocks>::kCtasPerSm - 1024;
  static constexpr int kFixedBytes =
      2 * kSumCount * 4 + 8 * (kWarps * Tuning<kTokenBlocks>::kSlots + kActParts + 4);

  int slots;       // of each warp
  int act_stride;  // bytes; 16 more than whole chunks spread a fragment's rows over banks
  int tokens;

  __host__ __device__ int Act() const { return kWarps * slots * kSlotBytes; }
  __host__ __device__ int Sums(int buffer) const {
    return Act() + tokens * act_stride + buffer * (kSumCount * 4);
  }
  __host__ __device__ int Full(int warp, int slot) const {
    return Sums(2) + 8 * (warp * slots + slot);
  }
  __host__ __device__ int ActFull(int part) const { return Full(kWarps, part); }
  __host__ __device__ int SumsFull(int buffer) const { return ActFull(kActParts + buffer); }
  __host__ __device__ int SumsEmpty(int buffer) const { return ActFull(kActParts + 2 + buffer); }
  __host__ __device__ int Bytes() const { return ActFull(kActParts + 4); }
};

// The layout with as many slots as fit beside the activations; slots 0 if too few do.
template <int kTokenBlocks>
Layout<kTokenBlocks> MakeLayout(int64_t tokens, int64_t cols) {
  using L = Layout<kTokenBlocks>;
  const int64_t act_stride = RoundUpTo(cols, 128) + 16;
  const int64_t left = L::kMostBytes - L::kFixedBytes - tokens * act_stride;
  const int64_t slots = std::min<int64_t>(L::kSlots, left / (L::kWarps * L::kSlotBytes));
  L layout;
  layout.slots = slots < kFewestSlots ? 0 : static_cast<int>(slots);
  layout.act_stride = static_cast<int>(act_stride);
  layout.tokens = static_cast<int>(tokens);
  return layout;
}

// A CTA's share: 16-row blocks [begin, end), in segments that begin at multiples of kBlocks
// (so none crosses a 128-row tile), the first and the last perhaps shorter.
template <int kBlocks>
struct Share {
  int begin;
  int end;
  int chunks;
  int64_t packed_chunks;
  const uint8_t* packed;

  __device__ int Segments() const { return (end + kBlocks - 1) / kBlocks - begin / kBlocks; }
  __device__ int First(int segment) const {
    return max(begin, (begin / kBlocks + segment) * kBlocks);
  }
  __device__ int Count(int segment) const {
    return min(end, (begin / kBlocks + segment + 1) * kBlocks) - First(segment);
  }
  __device__ const uint8_t* Weights(int segment, int chunk) const {
    const int block = First(segment);
    return packed + (block / 8 * packed_chunks + chunk) * kGemmIntTileBytes +
           block % 8 * kGemmIntBlockBytes;
  }
};

// A warp's way through the chunks of all segments, counted through: every kWarps-th.
template <int kWarps>
struct Position {
  int segment;
  int chunk;
  __device__ void Normalize(int chunks) {
    while (chunk >= chunks) {
      chunk -= chunks;
      ++segment;
    }
  }
  __device__ void Advance(int chunks) {
    chunk += kWarps;
    Normalize(chunks);
  }
};

// One block row of tokens' activations of a chunk: lane (g, c) gets bytes 16 k + 4 c of
// token g as word k.
__device__ __forceinline__ void LoadActivations(uint32_t address, uint32_t (&words)[8]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t four[4];
    LoadMatrix(four, address + 64 * half);
#pragma unroll
    for (int k = 0; k < 4; ++k) words[4 * half + k] = four[k];
  }
}

// acc[block] += the block's chunk at `slot` (this lane's bytes) times the activations.
template <int kBlocks, int kTokenBlocks>
__device__ __forceinline__ void MultiplyChunk(const uint8_t* slot, int count,
                                              const uint32_t (&act)[kTokenBlocks][8],
                                              int32_t (&acc)[kBlocks][kTokenBlocks][4]) {
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int r = 0; r < kBlocks; ++r) {
      if (r >= count) continue;
      const uint4 x = *reinterpret_cast<const uint4*>(slot + r * kGemmIntBlockBytes + half * 512);
      const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
      for (int s = 0; s < 2; ++s) {
        uint32_t a0, a1, a2, a3;
        WidenNibbles(words[2 * s], a0, a1);
        WidenNibbles(words[2 * s + 1], a2, a3);
#pragma unroll
        for (int n = 0; n < kTokenBlocks; ++n) {
          MmaInt8(acc[r][n], a0, a1, a2, a3, act[n][4 * half + 2 * s],
                  act[n][4 * half + 2 * s + 1]);
        }
      }
    }
  }
}

// A multiplying warp.
template <int kTokenBlocks>
struct Multiplier {
  using L = Layout<kTokenBlocks>;
  using Way = Position<L::kWarps>;

  const L& layout;
  const Share<L::kBlocks>& share;
  uint8_t* shared;
  uint32_t base;  // of shared
  int warp;
  int lane;
  int segments;
  Way ahead;  // the next chunk to ask for

  // One lane: asks for the chunk at `ahead`, if there is one.
  __device__ __forceinline__ void Request(int slot) {
    if (lane == 0 && ahead.segment < segments) {
      const uint32_t bytes = share.Count(ahead.segment) * kGemmIntBlockBytes;
      const uint32_t full = base + layout.Full(warp, slot);
      BarrierExpect(full, bytes);
      BulkLoad(base + (warp * layout.slots + slot) * L::kSlotBytes,
               share.Weights(ahead.segment, ahead.chunk), bytes, full);
    }
    ahead.Advance(share.chunks);
  }

  // What does not depend on the kernel before.
  __device__ void Start() {
    ahead = {0, warp};
    ahead.Normalize(share.chunks);
    if (lane == 0) {
      for (int slot = 0; slot < layout.slots; ++slot) {
        BarrierInit(base + layout.Full(warp, slot), 1);
      }
      BarrierInitFence();
    }
    __syncwarp();
    for (int slot = 0; slot < layout.slots; ++slot) Request(slot);
    Way far = ahead;
    for (int i = 0; i < L::kPrefetchBytes / (L::kWarps * L::kSlotBytes); ++i) {
      if (lane == 0 && far.segment < segments) {
        BulkPrefetch(share.Weights(far.segment, far.chunk),
                     share.Count(far.segment) * kGemmIntBlockBytes);
      }
      far.Advance(share.chunks);
    }
  }

  __device__ void Run(int part_chunks) {
    // Tokens beyond the last one repeat it; their sums go nowhere.
    uint32_t act_row[kTokenBlocks];
#pragma unroll
    for (int n = 0; n < kTokenBlocks; ++n) {
      act_row[n] = base + layout.Act() +
                   min(8 * n + lane % 8, layout.tokens - 1) * layout.act_stride + lane / 8 * 16;
    }
    Way at = {0, warp};
    at.Normalize(share.chunks);
    int slot = 0;
    uint32_t parity = 0;
    int parts = 0;  // that have arrived
    for (int segment = 0; segment < segments; ++segment) {
      const int count = share.Count(segment);
      int32_t acc[L::kBlocks][kTokenBlocks][4] = {};
      for (; at.segment == segment; at.Advance(share.chunks)) {
        for (; parts * part_chunks <= at.chunk; ++parts) {
          BarrierWait(base + layout.ActFull(parts), 0);
        }
        uint32_t act[kTokenBlocks][8];
#pragma unroll
        for (int n = 0; n < kTokenBlocks; ++n) LoadActivations(act_row[n] + at.chunk * 128, act[n]);
        BarrierWait(base + layout.Full(warp, slot), parity);
        MultiplyChunk<L::kBlocks, kTokenBlocks>(
            shared + (warp * layout.slots + slot) * L::kSlotBytes + lane * 16, count, act, acc);
        __syncwarp();  // all lanes are done with the slot
        Request(slot);
        if (++slot == layout.slots) {
          slot = 0;
          parity ^= 1;
        }
      }
      AddSums(segment, count, acc);
    }
  }

  __device__ __forceinline__ void AddSums(int segment, int count,
                                          const int32_t (&acc)[L::kBlocks][kTokenBlocks][4]) {
    const int buffer = segment % 2;
    BarrierWait(base + layout.SumsEmpty(buffer), segment / 2 % 2 ^ 1);
    int32_t* sums = reinterpret_cast<int32_t*>(shared + layout.Sums(buffer));
#pragma unroll
    for (int r = 0; r < L::kBlocks; ++r) {
#pragma unroll
      for (int n = 0; n < kTokenBlocks; ++n) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int token = 8 * n + lane % 4 * 2 + k % 2;
          const int row = 16 * r + lane / 4 + k / 2 * 8;
          if (r < count && token < layout.tokens) {
            atomicAdd(sums + token * L::kSumStride + row, acc[r][n][k]);
          }
        }
      }
    }
    __syncwarp();  // the lanes' sums come before the arrival
    if (lane == 0) BarrierArrive(base + layout.SumsFull(buffer));
  }
};

// The finishing warps: sums to results. They leave the sums zero for the segment after next.
template <typename T, int kTokenBlocks>
__device__ void Finish(const CudaGemmIntArgs& args, const Layout<kTokenBlocks>& layout,
                       const Share<Layout<kTokenBlocks>::kBlocks>& share, uint8_t* shared,
                       uint32_t base, int thread) {
  using L = Layout<kTokenBlocks>;
  constexpr int kTokenStep = kFinishThreads / L::kRows;
  constexpr int kOutputs = (8 * kTokenBlocks + kTokenStep - 1) / kTokenStep;
  static_assert(kFinishThreads % L::kRows == 0);
  const int in_segment = thread % L::kRows;
  const int token0 = thread / L::kRows;
  const int segments = share.Segments();
  float act_scale[kOutputs];
#pragma unroll
  for (int i = 0; i < kOutputs; ++i) {
    const int token = token0 + i * kTokenStep;
    act_scale[i] = token < layout.tokens ? args.act_scale[token] : 0;
  }
  for (int segment = 0; segment < segments; ++segment) {
    const int64_t row = share.First(segment) * int64_t{16} + in_segment;
    const bool inside = in_segment < 16 * share.Count(segment) && row < args.weights.rows;
    // On their way while the segment is being multiplied.
    const float scale = inside ? args.weights.scale[row] * kNibbleScale : 0;
    const float bias = inside && args.weights.bias != nullptr ? args.weights.bias[row] : 0;
    float residual[kOutputs];
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int token = token0 + i * kTokenStep;
      residual[i] = 0;
      if (inside && token < layout.tokens && args.residual != nullptr) {
        residual[i] =
            Element<T>::ToFloat(static_cast<const T*>(args.residual)[token * args.y_stride + row]);
      }
    }
    const int buffer = segment % 2;
    BarrierWait(base + layout.SumsFull(buffer), segment / 2 % 2);
    int32_t* sums = reinterpret_cast<int32_t*>(shared + layout.Sums(buffer));
#pragma unroll
    for (int i = 0; i < kOutputs; ++i) {
      const int token = token0 + i * kTokenStep;
      if (!inside || token >= layout.tokens) continue;
      int32_t* sum = sums + token * L::kSumStride + in_segment;
      const float y = static_cast<float>(*sum) * (act_scale[i] * scale) + bias + residual[i];
      *sum = 0;
      static_cast<T*>(args.y)[token * args.y_stride + row] = Element<T>::FromFloat(y);
    }
    __syncwarp();
    if (thread % 32 == 0) BarrierArrive(base + layout.SumsEmpty(buffer));
  }
}

// One warp: brings the activations, token by lane, the first columns first.
template <int kTokenBlocks>
__device__ void CopyActivations(const CudaGemmIntArgs& args, const Layout<kTokenBlocks>& layout,
                                int chunks, int part_chunks, uint32_t base, int lane) {
  // Beyond act_stride a chunk's bytes stay as they are: their weights are zeros.
  const int row_bytes = static_cast<int>(min(int64_t{chunks} * 128, args.act_stride));
  for (int part = 0; part * part_chunks < chunks; ++part) {
    const int begin = part * part_chunks * 128;
    const int bytes = min(row_bytes, begin + part_chunks * 128) - begin;
    const uint32_t full = base + layout.ActFull(part);
    if (lane == 0) BarrierExpect(full, layout.tokens * bytes);
    __syncwarp();
    if (lane < layout.tokens) {
      BulkLoad(base + layout.Act() + lane * layout.act_stride + begin,
               args.act + lane * args.act_stride + begin, bytes, full);
    }
  }
}

template <typename T, int kTokenBlocks>
__global__ void __launch_bounds__(Tuning<kTokenBlocks>::kWarps * 32 + kFinishThreads,
                                  Tuning<kTokenBlocks>::kCtasPerSm)
    StreamKernel(const __grid_constant__ CudaGemmIntArgs args,
                 const __grid_constant__ Layout<kTokenBlocks> layout) {
  using L = Layout<kTokenBlocks>;
  extern __shared__ __align__(128) uint8_t shared[];
  LetSuccessorStart();
  const uint32_t base = SharedAddress(shared);
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t blocks = (args.weights.rows + 15) / 16;
  const int chunks = static_cast<int>((args.weights.cols + 127) / 128);
  const int part_chunks = (chunks + kActParts - 1) / kActParts;
  const int per_cta = static_cast<int>((blocks + gridDim.x - 1) / gridDim.x);
  const int begin = static_cast<int>(blockIdx.x) * per_cta;
  const Share<L::kBlocks> share = {begin, min(static_cast<int>(blocks), begin + per_cta), chunks,
                                   CudaGemmIntPaddedCols(args.weights.cols) / 128,
                                   args.weights.packed};
  Multiplier<kTokenBlocks> multiplier = {layout, share, shared,           base,
                                         warp,   lane,  share.Segments(), {}};
  const int finisher = static_cast<int>(threadIdx.x) - L::kWarps * 32;
  if (finisher < 0) {
    multiplier.Start();
  } else {
    int32_t* sums = reinterpret_cast<int32_t*>(shared + layout.Sums(0));
    for (int i = finisher; i < 2 * L::kSumCount; i += kFinishThreads) sums[i] = 0;
    if (finisher == 0) {
      for (int i = 0; i < kActParts; ++i) BarrierInit(base + layout.ActFull(i), 1);
      for (int i = 0; i < 2; ++i) {
        BarrierInit(base + layout.SumsFull(i), L::kWarps);
        BarrierInit(base + layout.SumsEmpty(i), kFinishWarps);
      }
      BarrierInitFence();
    }
  }
  __syncthreads();
  WaitForPredecessor();  // the weights, alone, are not its work
  if (finisher < 0) {
    multiplier.Run(part_chunks);
  } else {
    if (finisher < 32) {
      CopyActivations<kTokenBlocks>(args, layout, chunks, part_chunks, base, lane);
    }
    Finish<T, kTokenBlocks>(args, layout, share, shared, base, finisher);
  }
}

template <int kTokenBlocks>
void Launch(const CudaGemmIntArgs& args, CudaStream stream) {
  const Layout<kTokenBlocks> layout = MakeLayout<kTokenBlocks>(args.tokens, args.weights.cols);
  FLATQUANT_CHECK(layout.slots > 0);
  // The same number of blocks for each, as many as the fullest of all would have: no more time,
  // and shares that begin at even blocks more often.
  const int64_t blocks = CeilDiv(args.weights.rows, 16);
  const int64_t places = int64_t{CurrentCudaDevice().sm_count} * Tuning<kTokenBlocks>::kCtasPerSm;
  const int64_t ctas = CeilDiv(blocks, CeilDiv(blocks, places));
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = StreamKernel<decltype(element), kTokenBlocks>;
    // The most, whatever this launch needs: a captured one may need more than a later one.
    AllowSharedMemory(kernel, Layout<kTokenBlocks>::kMostBytes);
    LaunchDependent(kernel, static_cast<unsigned>(ctas),
                    Tuning<kTokenBlocks>::kWarps * 32 + kFinishThreads,
                    static_cast<size_t>(layout.Bytes()), stream, args, layout);
  });
  CheckCudaLaunch("GemmIntStream");
}

}  // namespace

bool GemmIntStreamTakes(int64_t tokens, int64_t cols) {
  if (tokens > kMostTokens) return false;
  return (tokens <= 8 ? MakeLayout<1>(tokens, cols).slots : MakeLayout<2>(tokens, cols).slots) > 0;
}

void GemmIntStream(const CudaGemmIntArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.tokens <= 16);
  if (args.tokens <= 8) {
    Launch<1>(args, stream);
  } else {
    Launch<2>(args, stream);
  }
}

}  // namespace flatquant::cuda
