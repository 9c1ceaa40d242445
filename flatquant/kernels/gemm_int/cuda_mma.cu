#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Few tokens: y^T = W X^T with weights as the 16-row operand and up to 8 tokens as the
// 8-column one. Bound by the weights' bytes, so a CTA takes few rows and its warps
// share out the columns: 4096 rows still are 256 CTAs of 16 warps. Each warp keeps a
// ring of chunks in shared memory, filled by asynchronous copies: registers would hold
// fewer, and waiting for one load in registers can mean waiting for a younger one.
// Partial sums are integers; adding them in any order gives the same result.

namespace flatquant::cuda {
namespace {

// A chunk is 128 columns. 16 bytes more per token spread a fragment's rows over banks.
constexpr int kActStride = 128 + 16;

// kTokens: blocks of 8 tokens per CTA; kRows: blocks of 16 rows per CTA; kSlots: chunks
// in a warp's ring; kActRows: tokens whose activations are held; kWarps: per CTA.
template <int kTokens, int kRows, int kSlots, int kActRows, int kWarps>
struct Ring {
  static constexpr int kSlotBytes = kRows * kGemmIntBlockBytes + kActRows * kActStride;
  static constexpr int kSharedBytes = kWarps * kSlots * kSlotBytes;

  const CudaGemmIntArgs& args;
  const uint8_t* weight;  // of this CTA's rows and this lane, chunk 0
  int64_t token0;
  int chunks;
  uint8_t* slots;  // of this warp

  __device__ uint8_t* Slot(int i) const { return slots + i % kSlots * kSlotBytes; }

  // Starts the copies of the warp's i-th chunk: weights, then activations.
  __device__ void RequestWeights(int i) const {
    const int chunk = threadIdx.x / 32 + i * kWarps;
    if (chunk >= chunks) return;
    const uint32_t to = SharedAddress(Slot(i));
    for (int r = 0; r < kRows; ++r) {
      const uint8_t* from = weight + int64_t{chunk} * kGemmIntTileBytes + r * kGemmIntBlockBytes;
      const uint32_t block = to + r * kGemmIntBlockBytes + threadIdx.x % 32 * 16;
      CopyAsync16(block, from, 16);
      CopyAsync16(block + 512, from + 512, 16);
    }
  }
  __device__ void RequestActivations(int i) const {
    const int chunk = threadIdx.x / 32 + i * kWarps;
    const int lane = threadIdx.x % 32;
    if (chunk < chunks) {
      const uint32_t to = SharedAddress(Slot(i));
      for (int a = lane; a < kActRows * 8; a += 32) {
        const int64_t token = token0 + a / 8;
        const int64_t byte = chunk * 128 + a % 8 * 16;
        const bool inside = token < args.tokens && byte < args.act_stride;
        CopyAsync16(to + kRows * kGemmIntBlockBytes + a / 8 * kActStride + a % 8 * 16,
                    inside ? args.act + token * args.act_stride + byte : args.act, inside ? 16 : 0);
      }
    }
    CopyAsyncCommit();  // also when empty, so that groups count chunks
  }

  __device__ void Multiply(int i, int32_t (&acc)[kRows][kTokens][4]) const {
    const int lane = threadIdx.x % 32;
    const int g = lane / 4;
    const uint8_t* slot = Slot(i);
    uint32_t act[kTokens][8];
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
      const uint8_t* row =
          slot + kRows * kGemmIntBlockBytes + (8 * n + g) * kActStride + lane % 4 * 4;
#pragma unroll
      for (int k = 0; k < 8; ++k) {
        act[n][k] = 8 * n + g < kActRows ? *reinterpret_cast<const uint32_t*>(row + 16 * k) : 0;
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const uint4 x =
            *reinterpret_cast<const uint4*>(slot + r * kGemmIntBlockBytes + half * 512 + lane * 16);
        const uint32_t words[4] = {x.x, x.y, x.z, x.w};
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          uint32_t a0, a1, a2, a3;
          WidenNibbles(words[2 * s], a0, a1);
          WidenNibbles(words[2 * s + 1], a2, a3);
#pragma unroll
          for (int n = 0; n < kTokens; ++n) {
            MmaInt8(acc[r][n], a0, a1, a2, a3, act[n][4 * half + 2 * s],
                    act[n][4 * half + 2 * s + 1]);
          }
        }
      }
    }
  }
};

template <typename T, int kTokens, int kRows, int kSlots, int kActRows, int kWarps>
__global__ void __launch_bounds__(kWarps * 32)
    MmaKernel(const __grid_constant__ CudaGemmIntArgs args) {
  using WarpRing = Ring<kTokens, kRows, kSlots, kActRows, kWarps>;
  extern __shared__ __align__(16) uint8_t shared[];
  __shared__ int32_t sums[kRows * 16][kTokens * 8];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int c = lane % 4;
  const int64_t block0 = blockIdx.y * int64_t{kRows};
  const int64_t packed_chunks = CudaGemmIntPaddedCols(args.weights.cols) / 128;
  const WarpRing ring = {args,
                         args.weights.packed + block0 / 8 * packed_chunks * kGemmIntTileBytes +
                             block0 % 8 * kGemmIntBlockBytes + lane * 16,
                         blockIdx.x * int64_t{kTokens * 8},
                         static_cast<int>((args.weights.cols + 127) / 128),
                         shared + warp * kSlots * WarpRing::kSlotBytes};
  LetSuccessorStart();
#pragma unroll
  for (int i = 0; i < kSlots - 1; ++i) ring.RequestWeights(i);
  WaitForPredecessor();  // the weights, alone, are not its work
#pragma unroll
  for (int i = 0; i < kSlots - 1; ++i) ring.RequestActivations(i);
  for (int i = threadIdx.x; i < kRows * kTokens * 128; i += kWarps * 32) (&sums[0][0])[i] = 0;
  __syncthreads();

  int32_t acc[kRows][kTokens][4] = {};
  for (int i = 0; warp + i * kWarps < ring.chunks; ++i) {
    __syncwarp();  // all lanes are done with the slot that is filled next
    ring.RequestWeights(i + kSlots - 1);
    ring.RequestActivations(i + kSlots - 1);
    CopyAsyncWait<kSlots - 1>();
    __syncwarp();  // the lanes' copies are visible to each other
    ring.Multiply(i, acc);
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int token = 8 * n + 2 * c + k % 2;
        if (ring.token0 + token < args.tokens) {
          atomicAdd(&sums[16 * i + g + k / 2 * 8][token], acc[i][n][k]);
        }
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kTokens * 128; i += kWarps * 32) {
    const int64_t row = block0 * 16 + i % (kRows * 16);
    const int64_t token = ring.token0 + i / (kRows * 16);
    if (row >= args.weights.rows || token >= args.tokens) continue;
    float y = static_cast<float>(sums[i % (kRows * 16)][i / (kRows * 16)]) *
              (args.act_scale[token] * (args.weights.scale[row] * kNibbleScale));
    if (args.weights.bias != nullptr) y += args.weights.bias[row];
    const int64_t at = token * args.y_stride + row;
    if (args.residual != nullptr) {
      y += Element<T>::ToFloat(static_cast<const T*>(args.residual)[at]);
    }
    static_cast<T*>(args.y)[at] = Element<T>::FromFloat(y);
  }
}

template <int kTokens, int kRows, int kSlots, int kActRows, int kWarps>
void Launch(const CudaGemmIntArgs& args, CudaStream stream) {
  constexpr int kSharedBytes = Ring<kTokens, kRows, kSlots, kActRows, kWarps>::kSharedBytes;
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.tokens, 8 * kTokens)),
                  static_cast<unsigned>(CeilDiv(args.weights.rows, 16 * kRows)));
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = MmaKernel<decltype(element), kTokens, kRows, kSlots, kActRows, kWarps>;
    AllowSharedMemory(kernel, kSharedBytes);
    LaunchDependent(kernel, grid, kWarps * 32, kSharedBytes, stream, args);
  });
  CheckCudaLaunch("GemmIntMma");
}

}  // namespace

void GemmIntMma(const CudaGemmIntArgs& args, CudaStream stream) {
  // Three slots per warp were the fastest measured: more only queue up at the memory.
  // With 8 tokens they take 102 KB; sm_86 and sm_89 have 99, enough for two. More tokens
  // take more rows per CTA, so that activations are not read from L2 more often than
  // weights from memory.
  if (args.tokens == 1) {
    Launch<1, 1, 3, 1, 16>(args, stream);
  } else if (args.tokens <= 8 && CurrentCudaDevice().sm_version % 10 == 0) {
    Launch<1, 1, 3, 8, 16>(args, stream);
  } else if (args.tokens <= 8) {
    Launch<1, 1, 2, 8, 16>(args, stream);
  } else {
    Launch<2, 2, 2, 16, 8>(args, stream);
  }
}

}  // namespace flatquant::cuda
