#include "flatquant/kernels/gemm_float/cuda_gemm_w4a16.h"

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/nibble_float.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"

// y^T = W X^T with weights as the 16-row operand. The packed layout gives a lane, in one
// word, four neighbouring columns of two rows: what a product of 16 columns takes, if
// the activations' columns are in the same order, which is eight contiguous bytes of a token.

namespace flatquant {
namespace {

constexpr int kDepth = 128;  // columns of a chunk
// 32 bytes more per token spread the four rows that half a warp reads at once over the banks.
constexpr int kActStride = kDepth * 2 + 32;

// A lane's word of rows g and g + 8 as the first operand: nibble n becomes n ^ 8 = value + 8,
// from which the zero point 8 is subtracted.
template <typename T>
__device__ void WidenOperand(uint32_t word, uint32_t (&a)[4]) {
  const auto eight = cuda::NibbleFloat<T>::MakeZeros(8, 8);
  word ^= 0x88888888u;
  uint32_t pairs[4];
  cuda::NibbleFloat<T>::Widen(__byte_perm(word, 0, 0x4140), eight, pairs);  // columns 0, 1
  a[0] = pairs[0];
  a[1] = pairs[1];
  cuda::NibbleFloat<T>::Widen(__byte_perm(word, 0, 0x4342), eight, pairs);  // columns 2, 3
  a[2] = pairs[0];
  a[3] = pairs[1];
}

// Copies tokens [0, kRows) of a chunk's activations, zeros outside, as number `thread` of
// `threads`. x: of the first token, chunk 0.
template <typename T, int kRows, int kThreads>
__device__ void CopyActivations(const CudaGemmW4A16Args& args, int64_t token0, int chunk,
                                int thread, uint32_t to) {
#pragma unroll
  for (int i = thread; i < kRows * (kDepth / 8); i += kThreads) {
    const int64_t token = token0 + i / (kDepth / 8);
    const int64_t col = int64_t{chunk} * kDepth + i % (kDepth / 8) * 8;
    const bool inside = token < args.tokens && col < args.weights.cols;
    const T* from = static_cast<const T*>(args.x) + (inside ? token * args.x_stride + col : 0);
    cuda::CopyAsync16(to + i / (kDepth / 8) * kActStride + i % (kDepth / 8) * 16, from,
                      inside ? 16 : 0);
  }
}

// acc += a chunk's product: kRows blocks of 16 rows with kTokens blocks of 8 tokens, of
// which kActRows rows are in memory.
template <typename T, int kRows, int kTokens, int kActRows>
__device__ void MultiplyChunk(const uint8_t* weight, const uint8_t* act,
                              float (&acc)[kRows][kTokens][4]) {
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    uint32_t words[kRows][4];
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      const uint4 x = *reinterpret_cast<const uint4*>(weight + r * cuda::kGemmIntBlockBytes +
                                                      half * 512 + lane * 16);
      words[r][0] = x.x, words[r][1] = x.y, words[r][2] = x.z, words[r][3] = x.w;
    }
#pragma unroll
    for (int w = 0; w < 4; ++w) {
      uint32_t a[kRows][4];
#pragma unroll
      for (int r = 0; r < kRows; ++r) WidenOperand<T>(words[r][w], a[r]);
#pragma unroll
      for (int n = 0; n < kTokens; ++n) {
        uint2 b = {};
        if (8 * n + g < kActRows) {
          b = *reinterpret_cast<const uint2*>(act + (8 * n + g) * kActStride + (4 * half + w) * 32 +
                                              lane % 4 * 8);
        }
#pragma unroll
        for (int r = 0; r < kRows; ++r) cuda::Mma16<T>(acc[r][n], a[r], b.x, b.y);
      }
    }
  }
}

template <typename T>
__device__ void Finish(const CudaGemmW4A16Args& args, int64_t row, int64_t token, float sum) {
  if (row >= args.weights.rows || token >= args.tokens) return;
  float y = sum * args.weights.scale[row];
  if (args.weights.bias != nullptr) y += args.weights.bias[row];
  const int64_t at = token * args.y_stride + row;
  if (args.residual != nullptr) {
    y += cuda::Element<T>::ToFloat(static_cast<const T*>(args.residual)[at]);
  }
  static_cast<T*>(args.y)[at] = cuda::Element<T>::FromFloat(y);
}

// The packed blocks of 16-row block `block`, chunk 0; the next chunk is a tile further.
__device__ const uint8_t* BlockAt(const CudaGemmIntWeights& weights, int64_t block) {
  const int64_t chunks = CudaGemmIntPaddedCols(weights.cols) / kDepth;
  return weights.packed + block / 8 * chunks * cuda::kGemmIntTileBytes +
         block % 8 * cuda::kGemmIntBlockBytes;
}

// Few tokens, bound by the weights' bytes: a CTA takes 16 rows, so that there are many
// CTAs, and its warps share out the columns, each with a ring of chunks in shared memory.
// Their sums are added in the warps' order: the same each time.
template <typename T, int kTokens, int kActRows, int kSlots, int kWarps>
__global__ void __launch_bounds__(kWarps * 32) FewKernel(const CudaGemmW4A16Args args) {
  constexpr int kSlotBytes = cuda::kGemmIntBlockBytes + kActRows * kActStride;
  extern __shared__ __align__(16) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t token0 = blockIdx.x * int64_t{kTokens * 8};
  const uint8_t* weight = BlockAt(args.weights, blockIdx.y) + lane * 16;
  const int chunks = static_cast<int>((args.weights.cols + kDepth - 1) / kDepth);
  uint8_t* ring = shared + warp * kSlots * kSlotBytes;
  const auto slot_at = [&](int i) { return ring + i % kSlots * kSlotBytes; };
  const auto request_weights = [&](int i) {
    const int chunk = warp + i * kWarps;
    if (chunk >= chunks) return;
    const uint32_t to = cuda::SharedAddress(slot_at(i)) + lane * 16;
    const uint8_t* from = weight + int64_t{chunk} * cuda::kGemmIntTileBytes;
    cuda::CopyAsync16(to, from, 16);
    cuda::CopyAsync16(to + 512, from + 512, 16);
  };
  const auto request_activations = [&](int i) {
    const int chunk = warp + i * kWarps;
    if (chunk < chunks) {
      const uint32_t to = cuda::SharedAddress(slot_at(i));
      CopyActivations<T, kActRows, 32>(args, token0, chunk, lane, to + cuda::kGemmIntBlockBytes);
    }
    cuda::CopyAsyncCommit();  // also when empty, so that groups count chunks
  };
  cuda::LetSuccessorStart();
#pragma unroll
  for (int i = 0; i < kSlots - 1; ++i) request_weights(i);
  cuda::WaitForPredecessor();  // the weights, alone, are not its work
#pragma unroll
  for (int i = 0; i < kSlots - 1; ++i) request_activations(i);

  float acc[1][kTokens][4] = {};
  for (int i = 0; warp + i * kWarps < chunks; ++i) {
    __syncwarp();  // all lanes are done with the slot that is filled next
    request_weights(i + kSlots - 1);
    request_activations(i + kSlots - 1);
    cuda::CopyAsyncWait<kSlots - 1>();
    __syncwarp();  // the lanes' copies are visible to each other
    MultiplyChunk<T, 1, kTokens, kActRows>(slot_at(i), slot_at(i) + cuda::kGemmIntBlockBytes, acc);
  }
  cuda::CopyAsyncWait<0>();
  __syncthreads();  // the rings' memory now takes the warps' sums: [warp][token][row]

  constexpr int kSums = kTokens * 8 * 16;
  float* sums = reinterpret_cast<float*>(shared);
#pragma unroll
  for (int n = 0; n < kTokens; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int token = 8 * n + lane % 4 * 2 + k % 2;
      sums[warp * kSums + token * 16 + lane / 4 + k / 2 * 8] = acc[0][n][k];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kSums; i += kWarps * 32) {
    float sum = 0;
    for (int w = 0; w < kWarps; ++w) sum += sums[w * kSums + i];
    Finish<T>(args, blockIdx.y * int64_t{16} + i % 16, token0 + i / 16, sum);
  }
}

// Many tokens: 128 rows x 64 tokens per CTA, 32 of the rows for each warp, which halves
// what activations ask of shared memory; stages come by asynchronous copies.
constexpr int kManyTokens = 64;
constexpr int kManyThreads = 128;
// Three stages of 26 KB: two CTAs on a multiprocessor cover each other's barriers.
constexpr int kManyStages = 3;
constexpr int kManyStageBytes = cuda::kGemmIntTileBytes + kManyTokens * kActStride;

template <typename T>
__global__ void __launch_bounds__(kManyThreads) ManyKernel(const CudaGemmW4A16Args args) {
  extern __shared__ __align__(16) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t token0 = blockIdx.x * int64_t{kManyTokens};
  const uint8_t* weight = BlockAt(args.weights, blockIdx.y * int64_t{8});
  const int chunks = static_cast<int>((args.weights.cols + kDepth - 1) / kDepth);
  const auto request = [&](int i) {
    if (i < chunks) {
      const uint32_t to = cuda::SharedAddress(shared + i % kManyStages * kManyStageBytes);
      const uint8_t* from = weight + int64_t{i} * cuda::kGemmIntTileBytes;
#pragma unroll
      for (int at = threadIdx.x * 16; at < cuda::kGemmIntTileBytes; at += kManyThreads * 16) {
        cuda::CopyAsync16(to + at, from + at, 16);
      }
      CopyActivations<T, kManyTokens, kManyThreads>(args, token0, i, threadIdx.x,
                                                    to + cuda::kGemmIntTileBytes);
    }
    cuda::CopyAsyncCommit();  // also when empty, so that groups count chunks
  };
#pragma unroll
  for (int i = 0; i < kManyStages - 1; ++i) request(i);
  float acc[2][kManyTokens / 8][4] = {};
  for (int i = 0; i < chunks; ++i) {
    cuda::CopyAsyncWait<kManyStages - 2>();
    // All threads' copies have arrived, and the stage that is filled next has been read.
    __syncthreads();
    request(i + kManyStages - 1);
    const uint8_t* stage = shared + i % kManyStages * kManyStageBytes;
    MultiplyChunk<T, 2, kManyTokens / 8, kManyTokens>(stage + warp * 2 * cuda::kGemmIntBlockBytes,
                                                      stage + cuda::kGemmIntTileBytes, acc);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
#pragma unroll
    for (int n = 0; n < kManyTokens / 8; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        Finish<T>(args, blockIdx.y * int64_t{128} + warp * 32 + r * 16 + lane / 4 + k / 2 * 8,
                  token0 + 8 * n + lane % 4 * 2 + k % 2, acc[r][n][k]);
      }
    }
  }
}

template <typename T, int kTokens, int kActRows, int kSlots, int kWarps>
void LaunchFew(const CudaGemmW4A16Args& args, CudaStream stream) {
  constexpr int kRingBytes = kWarps * kSlots * (cuda::kGemmIntBlockBytes + kActRows * kActStride);
  constexpr int kSharedBytes = std::max(kRingBytes, kWarps * kTokens * 8 * 16 * 4);
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.tokens, 8 * kTokens)),
                  static_cast<unsigned>(CeilDiv(args.weights.rows, 16)));
  const auto kernel = FewKernel<T, kTokens, kActRows, kSlots, kWarps>;
  AllowSharedMemory(kernel, kSharedBytes);
  LaunchDependent(kernel, grid, kWarps * 32, kSharedBytes, stream, args);
}

template <typename T>
void LaunchMany(const CudaGemmW4A16Args& args, CudaStream stream) {
  constexpr int kSharedBytes = kManyStages * kManyStageBytes;
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.tokens, kManyTokens)),
                  static_cast<unsigned>(CeilDiv(args.weights.rows, 128)));
  AllowSharedMemory(ManyKernel<T>, kSharedBytes);
  ManyKernel<T><<<grid, kManyThreads, kSharedBytes, stream>>>(args);
}

}  // namespace

void CudaGemmW4A16(const CudaGemmW4A16Args& args, CudaStream stream) {
  FLATQUANT_CHECK(args.weights.cols % 8 == 0);
  FLATQUANT_CHECK(args.x_stride >= args.weights.cols && args.x_stride % 8 == 0);
  FLATQUANT_CHECK(args.y_stride >= args.weights.rows);
  if (args.tokens == 0) return;
  cuda::ForElement(args.dtype, [&](auto element) {
    using T = decltype(element);
    if (args.tokens == 1) {
      LaunchFew<T, 1, 1, 3, 16>(args, stream);  // 61 KB: three CTAs on a multiprocessor
    } else if (args.tokens <= 8) {
      LaunchFew<T, 1, 8, 3, 8>(args, stream);  // 78 KB: two
    } else if (args.tokens <= 64) {
      LaunchFew<T, 2, 16, 2, 8>(args, stream);  // 88 KB: two; weights again from L2
    } else {
      LaunchMany<T>(args, stream);
    }
  });
  CheckCudaLaunch("CudaGemmW4A16");
}

}  // namespace flatquant
