#include "flatquant/kernels/gemm_int/cuda_gemm_int8.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"

// y^T = W X^T with weights as the 16-row operand: a CTA takes 64 or 128 rows and up to 64 tokens,
// a warp a quarter of the rows. Stages of 128 columns of both come into shared memory ahead by
// asynchronous copies. Bound by the weights' bytes as long as there are few tokens: every
// weight is read once per 64 of them.

namespace flatquant {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kDepth = 128;  // columns per stage

// A CTA's tokens, 16-row blocks of a warp, stages in the ring and CTAs of a multiprocessor.
template <int tokens, int blocks, int stages, int ctas>
struct Config {
  static constexpr int kTokens = tokens;
  static constexpr int kBlocks = blocks;
  static constexpr int kStages = stages;
  static constexpr int kCtas = ctas;
  static constexpr int kRows = kWarps * blocks * 16;
  static constexpr int kStageBytes = (kRows + tokens) * kDepth;
};

// A thread's part of copying rows of a matrix into stages, whose rows are swizzled as swizzle.cuh
// says: one 16-byte chunk of every 16th row.
class RowCopies {
 public:
  // rows: of the matrix, from `matrix` on. Beyond them, and beyond `stride` bytes of one, come
  // zeros.
  __device__ RowCopies(const int8_t* matrix, int64_t stride, int64_t rows)
      : from_(matrix), step_(kStep * stride), bytes_(stride - Chunk() * 16), rows_(rows - Row()) {
    if (rows_ > 0 && bytes_ > 0) from_ += Row() * stride + Chunk() * 16;
  }

  // Columns [column, column + kDepth) of kCount rows.
  template <int kCount>
  __device__ void Request(uint32_t to, int64_t column) const {
    const bool inside = column < bytes_;
    to += cuda::ChunkOffset<kDepth / 2>(Row(), Chunk());
#pragma unroll
    for (int i = 0; i < kCount / kStep; ++i) {
      const bool exists = inside && i * kStep < rows_;
      cuda::CopyAsync16(to + i * kStep * kDepth, from_ + (exists ? i * step_ + column : 0),
                        exists ? 16 : 0);
    }
  }

 private:
  static constexpr int kStep = kThreads / (kDepth / 16);
  static __device__ int Row() { return threadIdx.x / (kDepth / 16); }
  static __device__ int Chunk() { return threadIdx.x % (kDepth / 16); }

  const int8_t* from_;
  int64_t step_;
  int64_t bytes_;  // from this chunk to a row's end
  int64_t rows_;
};

template <typename C>
__device__ void Multiply(uint32_t stage, int32_t (&acc)[C::kBlocks][C::kTokens / 8][4]) {
  const int lane = threadIdx.x % 32;
  const uint32_t weight =
      stage + threadIdx.x / 32 * (C::kBlocks * 16 * kDepth) + cuda::ByColumns<kDepth / 2>(lane);
  const uint32_t act = stage + C::kRows * kDepth + cuda::ByRows<kDepth / 2>(lane);
#pragma unroll
  for (int s = 0; s < kDepth / 32; ++s) {
    uint32_t a[C::kBlocks][4];
#pragma unroll
    for (int block = 0; block < C::kBlocks; ++block) {
      cuda::LoadMatrix(a[block], (weight + block * 16 * kDepth) ^ (s << 5));
    }
#pragma unroll
    for (int n = 0; n < C::kTokens / 8; n += 2) {
      uint32_t b[4];
      cuda::LoadMatrix(b, (act + n * 8 * kDepth) ^ (s << 5));
#pragma unroll
      for (int block = 0; block < C::kBlocks; ++block) {
        const auto& x = a[block];
        cuda::MmaInt8(acc[block][n], x[0], x[1], x[2], x[3], b[0], b[1]);
        cuda::MmaInt8(acc[block][n + 1], x[0], x[1], x[2], x[3], b[2], b[3]);
      }
    }
  }
}

template <typename C>
__global__ void __launch_bounds__(kThreads, C::kCtas) Int8Kernel(const CudaGemmInt8Args args) {
  extern __shared__ __align__(128) uint8_t shared[];
  const int64_t row0 = blockIdx.x * int64_t{C::kRows};
  const int64_t token0 = blockIdx.y * int64_t{C::kTokens};
  const int chunks = static_cast<int>((args.cols + kDepth - 1) / kDepth);
  const uint32_t ring = cuda::SharedAddress(shared);
  const auto stage_at = [&](int i) { return ring + i % C::kStages * C::kStageBytes; };
  const RowCopies weights(args.weight + row0 * args.weight_stride, args.weight_stride,
                          args.rows - row0);
  const RowCopies activations(args.act + token0 * args.act_stride, args.act_stride,
                              args.tokens - token0);
  const auto request_weights = [&](int i) {
    if (i < chunks) weights.Request<C::kRows>(stage_at(i), int64_t{i} * kDepth);
  };
  const auto request_activations = [&](int i) {
    if (i < chunks) {
      activations.Request<C::kTokens>(stage_at(i) + C::kRows * kDepth, int64_t{i} * kDepth);
    }
    cuda::CopyAsyncCommit();  // also when empty, so that groups count chunks
  };
  cuda::LetSuccessorStart();
#pragma unroll
  for (int i = 0; i < C::kStages - 1; ++i) request_weights(i);
  cuda::WaitForPredecessor();  // the weights, alone, are not its work
#pragma unroll
  for (int i = 0; i < C::kStages - 1; ++i) request_activations(i);
  int32_t acc[C::kBlocks][C::kTokens / 8][4] = {};
  for (int i = 0; i < chunks; ++i) {
    cuda::CopyAsyncWait<C::kStages - 2>();
    // All threads' copies have arrived, and the stage that is filled next has been read.
    __syncthreads();
    request_weights(i + C::kStages - 1);
    request_activations(i + C::kStages - 1);
    Multiply<C>(stage_at(i), acc);
  }

  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int block = 0; block < C::kBlocks; ++block) {
#pragma unroll
    for (int n = 0; n < C::kTokens / 8; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int64_t row =
            row0 + (threadIdx.x / 32 * C::kBlocks + block) * 16 + lane / 4 + k / 2 * 8;
        const int64_t token = token0 + 8 * n + lane % 4 * 2 + k % 2;
        if (row >= args.rows || token >= args.tokens) continue;
        args.y[token * args.y_stride + row] =
            static_cast<float>(acc[block][n][k]) * (args.act_scale[token] * args.weight_scale[row]);
      }
    }
  }
}

template <typename C>
void Launch(const CudaGemmInt8Args& args, CudaStream stream) {
  constexpr int kSharedBytes = C::kStages * C::kStageBytes;
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.rows, C::kRows)),
                  static_cast<unsigned>(CeilDiv(args.tokens, C::kTokens)));
  AllowSharedMemory(Int8Kernel<C>, kSharedBytes);
  LaunchDependent(Int8Kernel<C>, grid, kThreads, kSharedBytes, stream, args);
  CheckCudaLaunch("CudaGemmInt8");
}

}  // namespace

void CudaGemmInt8(const CudaGemmInt8Args& args, CudaStream stream) {
  FLATQUANT_CHECK(args.act_stride >= args.cols && args.act_stride % 16 == 0);
  FLATQUANT_CHECK(args.weight_stride >= args.cols && args.weight_stride % 16 == 0);
  FLATQUANT_CHECK(args.y_stride >= args.rows);
  if (args.tokens == 0) return;
  // Four CTAs of 50 KB have 144 KB or more on their way, several times what the latency of
  // memory asks for. With 64 tokens their codes, which every CTA reads, are as many bytes as 64
  // rows of weights.
  if (args.tokens <= 16) {
    Launch<Config<16, 1, 5, 4>>(args, stream);
  } else {
    Launch<Config<64, 2, 4, 2>>(args, stream);
  }
}

}  // namespace flatquant
