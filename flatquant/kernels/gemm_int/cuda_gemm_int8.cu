#include "flatquant/kernels/gemm_int/cuda_gemm_int8.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"

// y^T = W X^T with weights as the 16-row operand: a CTA takes 64 rows and up to 64 tokens,
// a warp 16 of the rows. Stages of 128 columns of both come into shared memory ahead by
// asynchronous copies. Bound by the weights' bytes as long as there are few tokens: every
// weight is read once per 64 of them.

namespace flatquant {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kRows = kWarps * 16;
constexpr int kDepth = 128;  // columns per stage

// Stages in the ring. With 8 tokens a CTA holds 45 KB, of which four fit on a
// multiprocessor: 144 KB on their way, several times what the latency of memory asks for.
template <int kTokens>
constexpr int kStages = kTokens == 8 ? 5 : 4;
template <int kTokens>
constexpr int kStageBytes = (kRows + kTokens) * kDepth;

// A stage's rows are 128 bytes; a fragment's load takes 64 of each of two neighbouring ones,
// which must not be the same half of the banks.
__device__ int ChunkAt(int row, int chunk) { return row * kDepth + ((chunk ^ row % 2 * 4) << 4); }

// Rows [0, kCount) of a stage from a matrix of `rows` rows, zeros outside.
template <int kCount>
__device__ void CopyRows(uint32_t to, const int8_t* from, int64_t stride, int64_t rows,
                         int64_t byte0) {
#pragma unroll
  for (int i = threadIdx.x; i < kCount * 8; i += kThreads) {
    const int row = i / 8;
    const int64_t byte = byte0 + i % 8 * 16;
    const bool inside = row < rows && byte < stride;
    cuda::CopyAsync16(to + ChunkAt(row, i % 8), inside ? from + row * stride + byte : from,
                      inside ? 16 : 0);
  }
}

// The order of columns within a product is free as long as both operands have the same:
// lane (g, c) takes bytes 16 c .. 16 c + 15 of every 64, the first eight for one product,
// the others for the next.
template <int kTokens>
__device__ void Multiply(const uint8_t* stage, int warp, int lane, int32_t (&acc)[kTokens / 8][4]) {
  const int g = lane / 4;
  const int c = lane % 4;
  const uint8_t* weight = stage + warp * 16 * kDepth;
  const uint8_t* act = stage + kRows * kDepth;
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    const uint4 low = *reinterpret_cast<const uint4*>(weight + ChunkAt(g, 4 * half + c));
    const uint4 high = *reinterpret_cast<const uint4*>(weight + ChunkAt(g + 8, 4 * half + c));
#pragma unroll
    for (int n = 0; n < kTokens / 8; ++n) {
      const uint4 x = *reinterpret_cast<const uint4*>(act + ChunkAt(8 * n + g, 4 * half + c));
      cuda::MmaInt8(acc[n], low.x, high.x, low.y, high.y, x.x, x.y);
      cuda::MmaInt8(acc[n], low.z, high.z, low.w, high.w, x.z, x.w);
    }
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads) Int8Kernel(const CudaGemmInt8Args args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int64_t row0 = blockIdx.x * int64_t{kRows};
  const int64_t token0 = blockIdx.y * int64_t{kTokens};
  const int chunks = static_cast<int>((args.cols + kDepth - 1) / kDepth);
  const uint32_t ring = cuda::SharedAddress(shared);
  const auto stage_at = [&](int i) { return ring + i % kStages<kTokens> * kStageBytes<kTokens>; };
  const auto request_weights = [&](int i) {
    if (i >= chunks) return;
    CopyRows<kRows>(stage_at(i), args.weight + row0 * args.weight_stride, args.weight_stride,
                    args.rows - row0, int64_t{i} * kDepth);
  };
  const auto request_activations = [&](int i) {
    if (i < chunks) {
      CopyRows<kTokens>(stage_at(i) + kRows * kDepth, args.act + token0 * args.act_stride,
                        args.act_stride, args.tokens - token0, int64_t{i} * kDepth);
    }
    cuda::CopyAsyncCommit();  // also when empty, so that groups count chunks
  };
  cuda::LetSuccessorStart();
#pragma unroll
  for (int i = 0; i < kStages<kTokens> - 1; ++i) request_weights(i);
  cuda::WaitForPredecessor();  // the weights, alone, are not its work
#pragma unroll
  for (int i = 0; i < kStages<kTokens> - 1; ++i) request_activations(i);
  int32_t acc[kTokens / 8][4] = {};
  for (int i = 0; i < chunks; ++i) {
    cuda::CopyAsyncWait<kStages<kTokens> - 2>();
    // All threads' copies have arrived, and the stage that is filled next has been read.
    __syncthreads();
    request_weights(i + kStages<kTokens> - 1);
    request_activations(i + kStages<kTokens> - 1);
    Multiply<kTokens>(shared + i % kStages<kTokens> * kStageBytes<kTokens>, warp, lane, acc);
  }

#pragma unroll
  for (int n = 0; n < kTokens / 8; ++n) {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const int64_t row = row0 + warp * 16 + lane / 4 + k / 2 * 8;
      const int64_t token = token0 + 8 * n + lane % 4 * 2 + k % 2;
      if (row >= args.rows || token >= args.tokens) continue;
      args.y[token * args.y_stride + row] =
          static_cast<float>(acc[n][k]) * (args.act_scale[token] * args.weight_scale[row]);
    }
  }
}

template <int kTokens>
void Launch(const CudaGemmInt8Args& args, CudaStream stream) {
  constexpr int kSharedBytes = kStages<kTokens> * kStageBytes<kTokens>;
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.rows, kRows)),
                  static_cast<unsigned>(CeilDiv(args.tokens, kTokens)));
  AllowSharedMemory(Int8Kernel<kTokens>, kSharedBytes);
  LaunchDependent(Int8Kernel<kTokens>, grid, kThreads, kSharedBytes, stream, args);
  CheckCudaLaunch("CudaGemmInt8");
}

}  // namespace

void CudaGemmInt8(const CudaGemmInt8Args& args, CudaStream stream) {
  FLATQUANT_CHECK(args.act_stride >= args.cols && args.act_stride % 16 == 0);
  FLATQUANT_CHECK(args.weight_stride >= args.cols && args.weight_stride % 16 == 0);
  FLATQUANT_CHECK(args.y_stride >= args.rows);
  if (args.tokens == 0) return;
  if (args.tokens <= 8) {
    Launch<8>(args, stream);
  } else if (args.tokens <= 32) {
    Launch<32>(args, stream);
  } else {
    Launch<64>(args, stream);
  }
}

}  // namespace flatquant
