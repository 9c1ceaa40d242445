#pragma once

#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"

// The flow of weights of cuda_flow_sm90.cu: what a CTA holds, and how a warp walks.
namespace flatquant::cuda {

constexpr int kFlowTokens = 8;  // the columns of a tensor-core product
// A row of 16 sums per token; four more spread a fragment's tokens over the banks.
constexpr int kFlowSumStride = 16 + 4;
// Shared memory of a multiprocessor, and what each CTA costs beyond its own (bytes).
constexpr int kFlowMultiprocessorBytes = 228 << 10;
constexpr int kFlowReservedBytes = 1 << 10;

// Warps of a CTA, copies in a warp's ring, CTAs of a multiprocessor, 16-row blocks of a copy.
template <int warps, int copies, int ctas, int blocks>
struct FlowConfig {
  static constexpr int kWarps = warps;
  static constexpr int kThreads = warps * 32;
  static constexpr int kCopies = copies;
  static constexpr int kCtas = ctas;
  static constexpr int kBlocks = blocks;
  static constexpr int kCopyBytes = blocks * kGemmIntBlockBytes;
  static constexpr int kRingBytes = warps * copies * kCopyBytes;
  // So many fit, and no more: a wave whose CTAs are let start early would otherwise crowd where
  // the kernel before has left room first, and leave other multiprocessors without work.
  static constexpr int kMostBytes = kFlowMultiprocessorBytes / ctas - kFlowReservedBytes;
  static constexpr int kLeastBytes = kFlowMultiprocessorBytes / (ctas + 1);
};
// Copies of 2 KB, where a CTA has so many rows; 1 and 4 KB were no faster. Times on an H200 of a
// decode step's 128 linears (hidden size 4096) and what lies between them. One token: 1618 us with
// rings of 160 KB per multiprocessor, 1931 with 96 KB, which let a third CTA in.
using FlowNarrow = FlowConfig<8, 5, 2, 2>;
// Rows for one block of each CTA (hidden sizes up to 4096): as many bytes on their way.
using FlowSingle = FlowConfig<8, 10, 2, 1>;
// The activations of 8 tokens (11008 columns: 88 KB) leave 96 KB, and lie there once for all
// warps of a multiprocessor: 1733 us for 8 tokens, 2063 with two CTAs. With fewer tokens longer
// rings would fit, but left the kernels beside them no room: 7% slower steps of four tokens.
using FlowWide = FlowConfig<16, 3, 1, 2>;

// A CTA's shared memory: offsets in bytes.
template <typename C>
struct FlowLayout {
  int act_stride;  // bytes; 16 more than whole chunks spread a fragment's rows over banks
  int tokens;
  int blocks;  // of a CTA, at most

  __host__ __device__ int Barriers() const { return C::kRingBytes; }
  __host__ __device__ int Act() const { return Barriers() + 8 * C::kWarps * C::kCopies; }
  __host__ __device__ int Sums() const { return Act() + tokens * act_stride; }
  __host__ __device__ int SumCount() const { return blocks * tokens * kFlowSumStride; }
  __host__ __device__ int Scale() const { return Sums() + 4 * SumCount(); }
  __host__ __device__ int Bias() const { return Scale() + blocks * 64; }
  __host__ __device__ int ActScale() const { return Bias() + blocks * 64; }
  __host__ __device__ int Bytes() const { return ActScale() + tokens * 4; }
};

// A warp's way through its CTA's copies: groups of blocks, in each every kWarps-th chunk.
template <typename C>
struct FlowWalk {
  int chunks;
  int group = 0;
  int chunk = 0;

  __device__ FlowWalk(int all_chunks, int warp) : chunks(all_chunks) { Advance(warp); }
  __device__ void Advance(int by = C::kWarps) {
    for (chunk += by; chunk >= chunks; chunk -= chunks) ++group;
  }
};

// The 16-row blocks [begin, begin + count) as a warp's ring of copies.
template <typename C>
struct FlowRing {
  const uint8_t* packed;
  int64_t packed_chunks;
  int begin;
  int count;
  uint32_t copies;
  uint32_t full;  // barriers

  __device__ void Init() const {
    if (threadIdx.x % 32 == 0) {
      for (int slot = 0; slot < C::kCopies; ++slot) BarrierInit(full + 8 * slot, 1);
      BarrierInitFence();
    }
    __syncwarp();
  }
  __device__ const uint8_t* Weights(int block, int chunk) const {
    return packed + (block / 8 * packed_chunks + chunk) * kGemmIntTileBytes +
           block % 8 * kGemmIntBlockBytes;
  }
  // Starts the next copy, if there is one; all lanes are done with the slot.
  __device__ void Request(int slot, FlowWalk<C>& walk) const {
    const int first = walk.group * C::kBlocks;
    if (first >= count) return;
    if (threadIdx.x % 32 == 0) {
      const int block = begin + first;
      const int blocks = min(C::kBlocks, count - first);
      const int in_tile = min(blocks, 8 - block % 8);  // the rest lies in the next tile
      const uint32_t to = copies + slot * C::kCopyBytes;
      BarrierExpect(full + 8 * slot, blocks * kGemmIntBlockBytes);
      BulkLoad(to, Weights(block, walk.chunk), in_tile * kGemmIntBlockBytes, full + 8 * slot);
      if (in_tile < blocks) {
        BulkLoad(to + in_tile * kGemmIntBlockBytes, Weights(block + in_tile, walk.chunk),
                 (blocks - in_tile) * kGemmIntBlockBytes, full + 8 * slot);
      }
    }
    walk.Advance();
  }
};

}  // namespace flatquant::cuda
