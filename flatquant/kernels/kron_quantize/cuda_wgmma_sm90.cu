#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"
#include "flatquant/kernels/kron_quantize/cuda_input.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"
#include "flatquant/kernels/kron_quantize/cuda_tile.cuh"

// The threads of a CTA bring X themselves, through what stands before the transform. CTAs stay:
// matrices are loaded once, then tokens pass by; two or more CTAs per multiprocessor hide each
// other's loads, products and quantization.

namespace flatquant::cuda {
namespace {

// Of 16 bytes of X, and as many of what it is multiplied by, that a thread loads: how many are on
// their way together. With many tokens CTAs hide each other's loads, and more would take registers
// that the products need.
template <int kLeft>
constexpr int kSomeLoads = kLeft <= 64 ? 4 : 3;

template <typename T, int kLeft, int kRight, int kLoadsAtOnce>
__global__ void __launch_bounds__(KronTile<kLeft, kRight>::kThreads,
                                  KronTile<kLeft, kRight>::kMinBlocks)
    KronKernel(const __grid_constant__ CudaKronQuantizeArgs args) {
  using Tile = KronTile<kLeft, kRight>;
  extern __shared__ uint8_t shared[];
  __shared__ Extremes extremes[Tile::kThreads / 32];
  const uint32_t right = (SharedAddress(shared) + 1023) & ~1023u;
  const uint32_t left = right + Tile::kRightBytes;
  const uint32_t x = left + Tile::kLeftBytes;
  const int group = threadIdx.x / 128;
  const int rows = static_cast<int>(args.transform.left_size);
  const int left_stride = (rows + 15) / 16 * 16;
  const uint16_t* packed = static_cast<const uint16_t*>(args.transform.packed);
  LetSuccessorStart();
  LoadMatrixPanels<kLeft, (kLeft + 63) / 64 * 64>(packed, left_stride, left);
  LoadMatrixPanels<kRight, kRight>(packed + left_stride * left_stride, kRight, right);
  CopyAsyncCommit();
  PrefetchNorm(args);
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  // A thread's places: the same chunk of every 16th row of X, the same pair of chunks of
  // every 32nd row of codes. These are multiples of eight, so the swizzle stays.
  const int in_row = threadIdx.x / (kRight / 8);
  const uint32_t in_address = PanelAddress(x, Tile::kLeftPanel, in_row, threadIdx.x % (kRight / 8));
  const int out_row = threadIdx.x / (kRight / 16);
  const int out_chunk = threadIdx.x % (kRight / 16) * 2;
  const uint32_t out_address = PanelAddress(x, Tile::kLeftPanel, out_row, out_chunk);

  const auto inside = [&](int i) {
    return i < Tile::kLoads && in_row + i * Tile::kRowsPerLoad < rows;
  };
  const auto from = [&](int i) { return threadIdx.x * 8 + i * Tile::kThreads * 8; };
  const auto to = [&](int i) { return in_address + i * Tile::kRowsPerLoad * 128; };

  // With a token for each CTA, as in decoding, a first pass takes for a token what lies there, and
  // its results go nowhere: the kernels before have pushed these instructions out of the caches,
  // and until its turn comes the CTA has the time to bring them back. It waits for no copies.
  const bool rehearses = args.tokens <= gridDim.x;
  const int64_t first_token = blockIdx.x;
  for (int64_t token = first_token - (rehearses ? gridDim.x : 0); token < args.tokens;
       token += gridDim.x) {
    const bool counts = token >= 0;
    if (token == first_token) {
      // Rows that X has not, which a first pass may have filled with anything.
      for (int i = rows * kRight / 8 + threadIdx.x; i < kLeft * kRight / 8; i += Tile::kThreads) {
        StoreShared(PanelAddress(x, Tile::kLeftPanel, i / (kRight / 8), i % (kRight / 8)), uint4{});
      }
      // The matrices and the norm's weights, alone, are not the predecessor's work.
      WaitForPredecessor();
    }
    Extremes mine;
    if (args.input == CudaSiteInput::kPlain) {
      const T* input = static_cast<const T*>(args.x) + token * args.x_stride;
#pragma unroll
      for (int i = 0; i < Tile::kLoads; ++i) {
        if (counts && inside(i)) CopyAsync16(to(i), input + from(i), 16);
      }
      CopyAsyncCommit();
    } else {
      const SiteInput<T> input =
          counts ? SiteInput<T>(args, token) : SiteInput<T>{args.input, args.transform.packed};
#pragma unroll
      for (int first = 0; first < Tile::kLoads; first += kLoadsAtOnce) {
        typename SiteInput<T>::Loaded loaded[kLoadsAtOnce];
#pragma unroll
        for (int i = 0; i < kLoadsAtOnce; ++i) {
          if (inside(first + i)) loaded[i] = input.Load(from(first + i));
        }
#pragma unroll
        for (int i = 0; i < kLoadsAtOnce; ++i) {
          if (!inside(first + i)) continue;
          float v[8];
          input.Finish(loaded[i], v, mine.square_sum);
          StoreShared(to(first + i), Pack8<T>(v));
        }
      }
    }
    if (counts) PrefetchToken<T>(args, token + gridDim.x);
    if (counts) CopyAsyncWait<0>();  // the input; before the first token the matrices, too
    FenceAsyncProxy();
    __syncthreads();

    float acc[kLeft / 2];
    StartRightProduct<T, kLeft, kRight>(acc, right, x);
    mine.square_sum = WarpSum(mine.square_sum);  // while the products are being made
    WgmmaWait<0>();
    StartLeftProduct<T, kLeft, kRight>(acc, left);
    WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < kLeft / 2; ++i) WgmmaPin(acc[i]);

    TakeExtremes(acc, mine);
    const Extremes all = ReduceExtremes(mine, extremes);
    const float factor = NormFactor(args, all.square_sum);
    const uint32_t panel = x + group * Tile::kLeftPanel;
    if (args.bits == 16) {
      StageTransposed<kLeft>(
          acc, panel, [&](float a, float b) { return Element<T>::Pack(a * factor, b * factor); });
      __syncthreads();
      T* y = static_cast<T*>(args.y) + token * args.width;
      for (int i = threadIdx.x; counts && i < rows * kRight / 8; i += Tile::kThreads) {
        reinterpret_cast<uint4*>(y)[i] =
            LoadShared(PanelAddress(x, Tile::kLeftPanel, i / (kRight / 8), i % (kRight / 8)));
      }
      __syncthreads();
      continue;
    }
    for (int clip = 0; clip < args.clip_count; ++clip) {
      const float scale = ChooseScale(all, args.clips[clip], top);
      const Coder code(scale, top);
      StageTransposed<kLeft>(
          acc, panel, [&](float a, float b) { return __byte_perm(code(a), code(b), 0x5410); });
      __syncthreads();
      int8_t* codes = args.codes + (clip * args.tokens + token) * args.code_stride;
#pragma unroll
      for (int i = 0; i < (kLeft + Tile::kRowsPerStore - 1) / Tile::kRowsPerStore; ++i) {
        if (out_row + i * Tile::kRowsPerStore >= rows) continue;
        const uint32_t from = out_address + i * Tile::kRowsPerStore * 128;
        // The other chunk of a pair: their numbers differ in the lowest bit.
        const uint4 narrow = NarrowCodes(LoadShared(from), LoadShared(from ^ 16));
        if (counts) reinterpret_cast<uint4*>(codes)[threadIdx.x + i * Tile::kThreads] = narrow;
      }
      if (counts) ClearTail(args, codes);
      if (counts && threadIdx.x == 0) args.scales[clip * args.tokens + token] = scale * factor;
      __syncthreads();
    }
  }
}

template <int kLeft, int kRight, int kLoadsAtOnce>
void Launch(const CudaKronQuantizeArgs& args, CudaStream stream) {
  using Tile = KronTile<kLeft, kRight>;
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = KronKernel<decltype(element), kLeft, kRight, kLoadsAtOnce>;
    const size_t bytes = AloneSharedMemory(args.tokens, Tile::kSharedBytes);
    AllowSharedMemory(kernel, bytes);
    const int64_t blocks = CtasOf(kernel, args.tokens, Tile::kThreads, Tile::kSharedBytes);
    LaunchDependent(kernel, static_cast<unsigned>(blocks), Tile::kThreads, bytes, stream, args);
  });
  CheckCudaLaunch("KronQuantizeWgmma");
}

}  // namespace

bool KronQuantizeWgmmaSupports(const CudaKronTransform& transform) {
  return (transform.right_size == 64 || transform.right_size == 128) && transform.left_size >= 1 &&
         transform.left_size <= transform.right_size;
}

void KronQuantizeWgmma(const CudaKronQuantizeArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(KronQuantizeWgmmaSupports(args.transform));
  const bool is_step = args.tokens <= CurrentCudaDevice().sm_count;
  if (args.input == CudaSiteInput::kPlain && args.bits < 16 && !is_step) {
    return KronQuantizeStream(args, stream);
  }
  ForKronTile(args.transform, [&](auto left, auto right) {
    constexpr int kLeft = decltype(left)::value, kRight = decltype(right)::value;
    // The tokens of a decode step wait for nothing but their own loads, and while linears fetch
    // their first weights memory answers late: all loads at once, where registers hold them. In
    // two turns a token's SwiGLU of 11008 columns took 4.7 us of a site's 6.8 (H200).
    if constexpr (kLeft == 96) {
      if (is_step) return Launch<kLeft, kRight, KronTile<kLeft, kRight>::kLoads>(args, stream);
    }
    Launch<kLeft, kRight, kSomeLoads<kLeft>>(args, stream);
  });
}

}  // namespace flatquant::cuda
