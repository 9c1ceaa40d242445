#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/cuda/tensor_map.cuh"
#include "flatquant/kernels/kron_quantize/cuda_input.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"
#include "flatquant/kernels/kron_quantize/cuda_tile.cuh"

// A prompt's many tokens of a plain input. CTAs stay: matrices are loaded once, then tokens pass
// by. The copy engine brings the next token while a token's second product and codes are made, and
// takes the codes to memory meanwhile. Two or more CTAs per multiprocessor fill each other's gaps.

namespace flatquant::cuda {
namespace {

template <int kLeft, int kRight>
struct StreamTile : KronTile<kLeft, kRight> {
  // Codes lie [l][r], swizzled in the width of a row, until the copy engine takes them. Staging
  // writes 32 rows at a time.
  static constexpr int kStageRows = (kLeft + 31) / 32 * 32;
  static constexpr int kStageBytes = kStageRows * kRight;
  static constexpr int kStreamBytes = KronTile<kLeft, kRight>::kSharedBytes + kStageBytes;
  // As many as registers and shared memory hold.
  static constexpr int kCtas = kRight == 64 ? 6 : kLeft == 32 ? 4 : kLeft == 64 ? 3 : 2;
};

// Row i of a group of 16 is the matrix's row of this number within the group, so that rows i and
// i + 8, which a thread has both, become neighbouring codes.
__device__ inline int InterleavedRow(int i) { return i / 16 * 16 + i % 8 * 2 + i / 8 % 2; }

// The accumulators' codes, [64 of R][kLeft], to bytes [l][r].
template <int kLeft, int kRight>
__device__ __forceinline__ void StageCodes(const float (&acc)[kLeft / 2], const Coder& code,
                                           uint32_t stage) {
  const int lane = threadIdx.x % 32;
  const int chunk = threadIdx.x / 32;  // of 16 codes: a warp has 16 of R
  // The copy engine's swizzle: 16-byte chunks are exchanged within 128 (or 64) bytes by the
  // address's bits from 128 on.
  const uint32_t swizzled = kRight == 128 ? chunk ^ lane % 8 : chunk ^ lane / 2 % 4;
  const uint32_t address = stage + lane * kRight + (swizzled << 4);
#pragma unroll
  for (int q = 0; q < (kLeft + 31) / 32; ++q) {
    uint32_t words[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      // Of a width that is not a multiple of 32, the last matrices stand for those beyond it.
      const int j = 4 * q + m < kLeft / 8 ? 4 * q + m : kLeft / 8 - 1;
      const float* d = acc + 4 * j;
      const uint32_t even = __byte_perm(code(d[0]), code(d[2]), 0x0040);
      const uint32_t odd = __byte_perm(code(d[1]), code(d[3]), 0x0040);
      words[m] = __byte_perm(even, odd, 0x5410);
    }
    StoreMatrixTransposed(address + q * 32 * kRight, words[0], words[1], words[2], words[3]);
  }
}

template <typename T, int kLeft, int kRight>
__global__ void __launch_bounds__(StreamTile<kLeft, kRight>::kThreads,
                                  StreamTile<kLeft, kRight>::kCtas)
    StreamKernel(const __grid_constant__ CudaKronQuantizeArgs args,
                 const __grid_constant__ CUtensorMap input,
                 const __grid_constant__ CUtensorMap output) {
  using Tile = StreamTile<kLeft, kRight>;
  constexpr int kWarps = Tile::kThreads / 32;
  extern __shared__ uint8_t shared[];
  __shared__ Extremes extremes[kWarps];
  __shared__ uint64_t barriers[2];
  const uint32_t right = (SharedAddress(shared) + 1023) & ~1023u;
  const uint32_t left = right + Tile::kRightBytes;
  const uint32_t x = left + Tile::kLeftBytes;
  const uint32_t stage = x + Tile::kXBytes;
  const uint32_t arrived = SharedAddress(barriers);  // X is there
  const uint32_t used = arrived + 8;                 // every warp's products have read it
  const int rows = static_cast<int>(args.transform.left_size);
  const int left_stride = (rows + 15) / 16 * 16;
  const uint16_t* packed = static_cast<const uint16_t*>(args.transform.packed);
  const bool leads = threadIdx.x == 0;
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  LetSuccessorStart();
  if (leads) {
    BarrierInit(arrived, 1);
    BarrierInit(used, kWarps);
    BarrierInitFence();
  }
  LoadMatrixPanels<kLeft, (kLeft + 63) / 64 * 64>(packed, left_stride, left);
  LoadMatrixPanels<kRight, kRight>(packed + left_stride * left_stride, kRight, right,
                                   InterleavedRow);
  CopyAsyncCommit();
  // Rows that X has not are zeros, by the copy engine.
  const auto bring = [&](int64_t token) {
    BarrierExpect(arrived, Tile::kXBytes);
    TensorLoad4(x, &input, static_cast<int>(token), arrived);
  };
  __syncthreads();  // the barriers are there
  // The matrices, alone, are not the predecessor's work.
  WaitForPredecessor();
  if (leads) bring(blockIdx.x);
  PrefetchToken<T>(args, blockIdx.x + gridDim.x);
  CopyAsyncWait<0>();
  FenceAsyncProxy();
  __syncthreads();

  uint32_t phase = 0;
  for (int64_t token = blockIdx.x; token < args.tokens; token += gridDim.x, phase ^= 1) {
    const int64_t next = token + gridDim.x;
    PrefetchToken<T>(args, next + gridDim.x);
    BarrierWait(arrived, phase);
    float acc[kLeft / 2];
    StartRightProduct<T, kLeft, kRight>(acc, right, x);
    WgmmaWait<0>();
    if (threadIdx.x % 32 == 0) BarrierArrive(used);
    StartLeftProduct<T, kLeft, kRight>(acc, left);
    if (leads && next < args.tokens) {
      BarrierWait(used, phase);
      bring(next);
    }
    WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < kLeft / 2; ++i) WgmmaPin(acc[i]);

    Extremes mine;
    TakeExtremes(acc, mine);
    if (leads) TensorStoreWaitRead();  // the codes before have left the stage
    const Extremes all = ReduceExtremes(mine, extremes);
    for (int clip = 0; clip < args.clip_count; ++clip) {
      const int64_t place = clip * args.tokens + token;
      const float scale = ChooseScale(all, args.clips[clip], top);
      if (clip > 0) {
        if (leads) TensorStoreWaitRead();
        __syncthreads();
      }
      StageCodes<kLeft, kRight>(acc, Coder(scale, top), stage);
      ClearTail(args, args.codes + place * args.code_stride);
      if (leads) args.scales[place] = scale;
      FenceAsyncProxy();
      __syncthreads();
      if (leads) TensorStore3(&output, stage, static_cast<int>(place));
    }
  }
  if (leads) TensorStoreWaitRead();
}

// x as [tokens][panels of 64][L][64], which is how panels lie in shared memory.
CUtensorMap InputMap(const CudaKronQuantizeArgs& args, int left_rows) {
  const int right = static_cast<int>(args.transform.right_size);
  return MakeTensorMapOf({args.x,
                          CU_TENSOR_MAP_DATA_TYPE_UINT16,
                          4,
                          {64, args.transform.left_size, right / 64, args.tokens},
                          {2, right * 2, 128, args.x_stride * 2},
                          {64, left_rows, right / 64, 1}});
}

// The codes of all clips as [tokens][L][R].
CUtensorMap OutputMap(const CudaKronQuantizeArgs& args, int left_rows) {
  const int right = static_cast<int>(args.transform.right_size);
  return MakeTensorMapOf({args.codes,
                          CU_TENSOR_MAP_DATA_TYPE_UINT8,
                          3,
                          {right, args.transform.left_size, args.clip_count * args.tokens},
                          {1, right, args.code_stride},
                          {right, left_rows, 1}});
}

template <int kLeft, int kRight>
void LaunchStream(const CudaKronQuantizeArgs& args, CudaStream stream) {
  using Tile = StreamTile<kLeft, kRight>;
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = StreamKernel<decltype(element), kLeft, kRight>;
    AllowSharedMemory(kernel, Tile::kStreamBytes);
    const int64_t blocks = CtasOf(kernel, args.tokens, Tile::kThreads, Tile::kStreamBytes);
    LaunchDependent(kernel, static_cast<unsigned>(blocks), Tile::kThreads, Tile::kStreamBytes,
                    stream, args, InputMap(args, kLeft), OutputMap(args, kLeft));
  });
  CheckCudaLaunch("KronQuantizeStream");
}

}  // namespace

void KronQuantizeStream(const CudaKronQuantizeArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(KronQuantizeWgmmaSupports(args.transform) && args.bits < 16 &&
                  args.input == CudaSiteInput::kPlain);
  ForKronTile(args.transform, [&](auto left, auto right) {
    LaunchStream<decltype(left)::value, decltype(right)::value>(args, stream);
  });
}

}  // namespace flatquant::cuda
