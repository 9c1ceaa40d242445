#pragma once

#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_wgmma_chunk.cuh"

// The stages of cuda_split_sm90.cu and the products made from them.
namespace flatquant::cuda {

constexpr int kSplitDepth = 128;  // columns of a stage
constexpr int kSplitWarps = 8;    // that multiply: each a 16-row block of every 128 rows
constexpr int kSplitThreads = kSplitWarps * 32 + 32;  // and a loading warp
// CTAs of a cluster; more than eight are not portable between GPUs.
constexpr int kMostSplit = 8;

// Tokens of a tile; blocks of 128 rows of a tile; stages; CTAs of a multiprocessor.
template <int tokens, int blocks, int stages, int ctas>
struct SplitConfig {
  static constexpr int kTokens = tokens;
  static constexpr int kBlocks = blocks;
  static constexpr int kRows = 128 * blocks;
  static constexpr int kStages = stages;
  static constexpr int kCtas = ctas;
  static constexpr int kActBytes = tokens * kSplitDepth;
  static constexpr int kWeightBytes = blocks * kGemmIntTileBytes;
  static constexpr int kStageBytes = kActBytes + kWeightBytes;
  // Sums [tokens][rows + 4], the padding against bank conflicts; where they are many they take
  // the stages' place, otherwise they need not wait until all warps are done with those.
  static constexpr int kSumStride = kRows + 4;
  static constexpr int kSumBytes = tokens * kSumStride * 4;
  static constexpr bool kOwnSums = tokens <= 32;
  static constexpr int kSumsAt = kOwnSums ? stages * kStageBytes : 0;
  static constexpr int kBarriersAt = stages * kStageBytes + (kOwnSums ? kSumBytes : 0);
  static constexpr int kSharedBytes = 1024 + kBarriersAt + 16 * stages;
  static_assert(kOwnSums || kSumBytes <= stages * kStageBytes);
  // What a multiplying thread finishes: four rows of every kTokenStep-th token of its rank. With
  // three blocks some threads finish nothing.
  static constexpr int kQuads = kRows / 4;
  static constexpr int kTokenStep = kSplitWarps * 32 / kQuads;
  static constexpr int kFinishing = kQuads * kTokenStep;
};

struct SplitParams {
  CudaGemmIntArgs args;
  int chunks;         // of 128 columns
  int packed_chunks;  // with the padding
  int packed_blocks;  // of 128 rows, likewise
  int split;          // CTAs of a cluster
};

// A CTA's shared memory and its chunks [first, last): chunk k passes through a stage.
template <typename C>
struct SplitStages {
  uint32_t base;
  int first;
  int last;

  __device__ int Of(int k) const { return (k - first) % C::kStages; }
  __device__ uint32_t Turn(int k) const { return (k - first) / C::kStages % 2; }
  __device__ uint32_t Act(int k) const { return base + Of(k) * C::kActBytes; }
  __device__ uint32_t Weight(int k) const {
    return base + C::kStages * C::kActBytes + Of(k) * C::kWeightBytes;
  }
  __device__ uint32_t Full(int k) const { return base + C::kBarriersAt + 8 * Of(k); }
  __device__ uint32_t Empty(int k) const { return Full(k) + 8 * C::kStages; }
  __device__ void Init() const {
    for (int i = 0; i < C::kStages; ++i) {
      BarrierInit(Full(first + i), 1);
      BarrierInit(Empty(first + i), kSplitWarps);
    }
    BarrierInitFence();
  }
  __device__ int Filled() const { return min(last, first + C::kStages); }
  // Expects a chunk's bytes and starts the copies of its weights.
  __device__ void LoadWeights(const SplitParams& params, int block, int k) const {
    BarrierExpect(Full(k), C::kStageBytes);
#pragma unroll
    for (int i = 0; i < C::kBlocks; ++i) {
      // Beyond the last block once more that one; nobody asks for its sums.
      const int64_t from = min(block + i, params.packed_blocks - 1);
      BulkLoad(Weight(k) + i * kGemmIntTileBytes,
               params.args.weights.packed + (from * params.packed_chunks + k) * kGemmIntTileBytes,
               kGemmIntTileBytes, Full(k));
    }
  }
};

// Adds the product of 128 rows with chunk k to acc. When it returns all products before this
// one are complete.
template <typename C>
__device__ __forceinline__ void Multiply(const SplitStages<C>& stages, int k, int block,
                                         uint32_t (&a)[16], int32_t (&acc)[C::kTokens / 2]) {
  const int lane = threadIdx.x % 32;
  if (block == 0) BarrierWait(stages.Full(k), stages.Turn(k));
  const uint32_t packed = stages.Weight(k) + block * kGemmIntTileBytes +
                          threadIdx.x / 32 * kGemmIntBlockBytes + lane * 16;
  MultiplyChunk<C::kTokens>(packed, stages.Act(k), a, acc, true);
  WgmmaWait<1>();
  if (block == 0 && k > stages.first) {
    __syncwarp();  // all lanes' reads come before the arrival
    if (lane == 0) BarrierArrive(stages.Empty(k - 1));
  }
}

// Two sets of operands in turn: one is being widened while the products of the other are made.
template <typename C>
__device__ __forceinline__ void MultiplyAll(const SplitStages<C>& stages,
                                            int32_t (&acc)[C::kBlocks][C::kTokens / 2]) {
  uint32_t a[2][16];
  constexpr int kTogether = C::kBlocks % 2 == 0 ? 1 : 2;  // chunks until the first set's turn
  int k = stages.first;
  for (; k + kTogether <= stages.last; k += kTogether) {
#pragma unroll
    for (int i = 0; i < kTogether * C::kBlocks; ++i) {
      Multiply(stages, k + i / C::kBlocks, i % C::kBlocks, a[i % 2], acc[i % C::kBlocks]);
    }
  }
  WgmmaWait<0>();
  if (kTogether > 1 && k < stages.last) {
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
      Multiply(stages, k, block, a[block % 2], acc[block]);
    }
    WgmmaWait<0>();
  }
#pragma unroll
  for (int block = 0; block < C::kBlocks; ++block) {
#pragma unroll
    for (int i = 0; i < C::kTokens / 2; ++i) WgmmaPin(acc[block][i]);
  }
}

}  // namespace flatquant::cuda
