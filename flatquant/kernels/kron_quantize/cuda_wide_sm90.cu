#include <type_traits>

#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"
#include "flatquant/kernels/kron_quantize/cuda_input.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"
#include "flatquant/kernels/kron_quantize/cuda_wide_tile.cuh"

// Any even R up to 256, where a token and its matrices fit in shared memory, by wgmma:
//
//   W = left^T X    (left^T by ldmatrix, X from shared memory, along R there)
//   Y = W right     (W as the register operand, right from shared memory)
//
// The order of cuda_wgmma_sm90.cu turned round: rows are those of L, so that Y lies in registers
// as its codes do in memory, and an L of any size costs one instantiation nothing. A warpgroup
// makes 64 rows. CTAs stay: matrices are loaded once, then tokens pass by.

namespace flatquant::cuda {
namespace {

template <typename T, int kHalves>
__global__ void __launch_bounds__(WideTile<kHalves>::kMaxThreads, WideTile<kHalves>::kMinBlocks)
    KronKernel(const __grid_constant__ CudaKronQuantizeArgs args) {
  using Tile = WideTile<kHalves>;
  extern __shared__ uint8_t shared[];
  __shared__ Extremes extremes[Tile::kMaxThreads / 32];
  const WideShape shape(args.transform);
  const uint32_t right = (SharedAddress(shared) + 1023) & ~1023u;
  const uint32_t left = right + Tile::kRightBytes;
  const uint32_t x = left + shape.LeftBytes();
  uint8_t* const staged = shared + (x - SharedAddress(shared));
  const int left_stride = (shape.rows + 15) / 16 * 16;
  const int right_stride = (shape.cols + 15) / 16 * 16;
  const uint16_t* packed = static_cast<const uint16_t*>(args.transform.packed);
  LetSuccessorStart();
  if (shape.groups == 1) {
    LoadMatrixPanels<64, 64>(packed, left_stride, left);
  } else if (shape.groups == 2) {
    LoadMatrixPanels<128, 128>(packed, left_stride, left);
  } else {
    LoadMatrixPanels<192, 192>(packed, left_stride, left);
  }
  LoadMatrixPanels<Tile::kColumns, 64 * Tile::kPanels>(packed + left_stride * left_stride,
                                                       right_stride, right);
  CopyAsyncCommit();
  PrefetchNorm(args);
  // Those of warps that this CTA lacks stay so.
  if (threadIdx.x < Tile::kMaxThreads / 32) extremes[threadIdx.x] = Extremes{};
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  const int chunks = (shape.cols + 7) / 8;
  const int threads = static_cast<int>(blockDim.x);
  const int thread = static_cast<int>(threadIdx.x);
  const Piece first_piece = {thread / chunks, thread % chunks};
  const Piece step = {threads / chunks, threads % chunks};
  const int lane = threadIdx.x % 32;
  // What this lane passes to LoadMatrix: a row of left^T, and within 16 of its elements which half.
  const int left_row = threadIdx.x / 32 * 16 + lane % 16;
  const int left_half = lane / 16;

  // As in cuda_wgmma_sm90.cu: with a token for each CTA a first pass, whose results go nowhere,
  // brings these instructions into the caches.
  const bool rehearses = args.tokens <= gridDim.x;
  const int64_t first_token = blockIdx.x;
  for (int64_t token = first_token - (rehearses ? gridDim.x : 0); token < args.tokens;
       token += gridDim.x) {
    const bool counts = token >= 0;
    // The matrices and the norm's weights, alone, are not the predecessor's work.
    if (token == first_token) WaitForPredecessor();
    Extremes mine;
    {
      const SiteInput<T> input =
          counts ? SiteInput<T>(args, token) : SiteInput<T>{args.input, args.transform.packed};
      typename SiteInput<T>::Loaded loaded[Tile::kLoads];
      Piece piece = first_piece.Again();
      if (shape.cols % 8 == 0) {
        LoadToken<uint4>(input, shape, piece, step, chunks, loaded);
      } else if (shape.cols % 4 == 0) {
        LoadToken<uint2>(input, shape, piece, step, chunks, loaded);
      } else {
        LoadToken<uint32_t>(input, shape, piece, step, chunks, loaded);
      }
      // Rows that X has not: codes of the token before may lie there. Columns that it has not
      // end in columns of W, which are cleared below.
      for (int i = threadIdx.x; i < (shape.depth - shape.rows) * 8; i += blockDim.x) {
        for (int panel = 0; panel < Tile::kPanels; ++panel) {
          StoreShared(x + panel * shape.XPanel() + shape.rows * 128 + i * 16, uint4{});
        }
      }
      piece = first_piece.Again();
#pragma unroll
      for (int i = 0; i < Tile::kLoads; ++i) {
        if (piece.row < shape.rows) {
          float v[8];
          input.Finish(loaded[i], v, mine.square_sum);
          StoreShared(PanelAddress(x, shape.XPanel(), piece.row, piece.chunk), Pack8<T>(v));
        }
        piece.Advance(step, chunks);
      }
    }
    if (counts) PrefetchToken<T>(args, token + gridDim.x);
    if (counts) CopyAsyncWait<0>();  // before the first token: the matrices
    FenceAsyncProxy();
    __syncthreads();

    float acc[16 * kHalves];
#pragma unroll
    for (int first = 0; first < Tile::kPanels; first += Tile::kPart) {
      // Zeros to add to: sums that the loop's first turn overwrote would have to live before it.
      float w[32 * Tile::kPart] = {};
      uint32_t a[2][4] = {};
      const auto load_left = [&](int depth) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int chunk = depth / 8 + 2 * i + left_half;
          // A first pass over nothing does not wait for the matrices.
          if (counts) LoadMatrix(a[i], PanelAddress(left, shape.LeftPanel(), left_row, chunk));
        }
      };
      load_left(0);
      for (int depth = 0; depth < shape.depth; depth += 32) {
        WgmmaFence();
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t rows = x + first * shape.XPanel() + (depth + 16 * i) * 128;
#pragma unroll
          for (int panel = 0; panel < Tile::kPart; ++panel) {
            Wgmma16Transposed<T, 64>::Run(
                Part<32>(w, 32 * panel), a[i][0], a[i][1], a[i][2], a[i][3],
                TransposedOperand(rows + panel * shape.XPanel(), shape.XPanel()), true);
          }
        }
        WgmmaCommit();
        WgmmaWait<0>();
#pragma unroll
        for (int i = 0; i < 32 * Tile::kPart; ++i) WgmmaPin(w[i]);
        if (depth + 32 < shape.depth) load_left(depth + 32);
      }
      constexpr int kWords = Tile::kPart < Tile::kPanels ? 16 * Tile::kPart : 8 * kHalves;
      uint32_t z[kWords];
#pragma unroll
      for (int i = 0; i < kWords; ++i) {
        const bool has = HasColumns<kHalves>(8 * first + i / 2, shape.cols);
        z[i] = has ? Element<T>::Pack(w[2 * i], w[2 * i + 1]) : 0;
      }
#pragma unroll
      for (int i = 0; i < kWords; ++i) WgmmaPin(z[i]);
      WgmmaFence();
#pragma unroll
      for (int i = 0; i < kWords; i += 4) {
        const int s = 4 * first + i / 4;
        const uint32_t columns = right + s / 4 * Tile::kRightPanel + s % 4 * 32;
#pragma unroll
        for (int c = 0; c < kHalves / 2; ++c) {
          Wgmma16<T, 64>::Run(Part<32>(acc, 32 * c), z[i], z[i + 1], z[i + 2], z[i + 3],
                              SwizzledOperand(columns + c * 64 * 128), s > 0);
        }
        if constexpr (kHalves % 2 == 1) {
          Wgmma16<T, 32>::Run(Part<16>(acc, 16 * (kHalves - 1)), z[i], z[i + 1], z[i + 2], z[i + 3],
                              SwizzledOperand(columns + (kHalves - 1) * 32 * 128), s > 0);
        }
      }
      WgmmaCommit();
      if (first == 0) mine.square_sum = WarpSum(mine.square_sum);  // meanwhile
      WgmmaWait<0>();
#pragma unroll
      for (int i = 0; i < 16 * kHalves; ++i) WgmmaPin(acc[i]);
    }

    TakeExtremes(acc, mine);  // those that Y has not are zeros
    const Extremes all = ReduceExtremes(mine, extremes);
    const float factor = NormFactor(args, all.square_sum);
    if (args.bits == 16) {
      T* y = static_cast<T*>(args.y) + token * args.width;
      ForEachPair<kHalves>(acc, shape, [&](int index, float a, float b) {
        const uint32_t pair = Element<T>::Pack(a * factor, b * factor);
        if (counts) *reinterpret_cast<uint32_t*>(y + index) = pair;
      });
      continue;
    }
    const int width = static_cast<int>(args.width);
    for (int clip = 0; clip < args.clip_count; ++clip) {
      const float scale = ChooseScale(all, args.clips[clip], top);
      const Coder code(scale, top);
      ForEachPair<kHalves>(acc, shape, [&](int index, float a, float b) {
        *reinterpret_cast<uint16_t*>(staged + StagedAt(index)) =
            static_cast<uint16_t>(__byte_perm(code(a), code(b), 0x0040));
      });
      __syncthreads();
      int8_t* codes = args.codes + (clip * args.tokens + token) * args.code_stride;
      for (int i = threadIdx.x; i < width / 16; i += blockDim.x) {
        const uint4 sixteen = LoadShared(x + StagedAt(16 * i));
        if (counts) reinterpret_cast<uint4*>(codes)[i] = sixteen;
      }
      if (counts) {
        const int rest = width / 16 * 16 + static_cast<int>(threadIdx.x);
        if (rest < width) codes[rest] = static_cast<int8_t>(staged[StagedAt(rest)]);
        ClearTail(args, codes);
        if (threadIdx.x == 0) args.scales[clip * args.tokens + token] = scale * factor;
      }
      __syncthreads();
    }
  }
}

// Calls run(constant) with the instantiation's kHalves for an R; false where there is none.
template <typename Run>
bool ForHalves(int64_t right_size, const Run& run) {
  if (right_size % 2 != 0 || right_size < 2) return false;
  switch (CeilDiv(right_size, 32)) {
    case 1:
    case 2:
      return run(std::integral_constant<int, 2>{});
    case 3:
      return run(std::integral_constant<int, 3>{});
    case 4:
      return run(std::integral_constant<int, 4>{});
    case 5:
      return run(std::integral_constant<int, 5>{});
    case 6:
      return run(std::integral_constant<int, 6>{});
    case 7:
      return run(std::integral_constant<int, 7>{});
    case 8:
      return run(std::integral_constant<int, 8>{});
    default:
      return false;
  }
}

template <int kHalves>
void Launch(const CudaKronQuantizeArgs& args, CudaStream stream) {
  const WideShape shape(args.transform);
  const size_t needed = static_cast<size_t>(SharedBytes<kHalves>(shape));
  const unsigned threads = static_cast<unsigned>(shape.groups) * 128;
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = KronKernel<decltype(element), kHalves>;
    const size_t bytes = AloneSharedMemory(args.tokens, needed);
    AllowSharedMemory(kernel, bytes);
    const int64_t blocks = CtasOf(kernel, args.tokens, static_cast<int>(threads), needed);
    LaunchDependent(kernel, static_cast<unsigned>(blocks), threads, bytes, stream, args);
  });
  CheckCudaLaunch("KronQuantizeWide");
}

}  // namespace

bool KronQuantizeWideSupports(const CudaKronTransform& transform) {
  if (transform.left_size < 1) return false;
  return ForHalves(transform.right_size, [&](auto halves) {
    using Tile = WideTile<decltype(halves)::value>;
    if (transform.left_size > 64 * Tile::kMaxGroups) return false;
    const int64_t fixed = sizeof(Extremes) * Tile::kMaxThreads / 32;
    return SharedBytes<decltype(halves)::value>(WideShape(transform)) + fixed <=
           CurrentCudaDevice().cta_shared_bytes;
  });
}

void KronQuantizeWide(const CudaKronQuantizeArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(KronQuantizeWideSupports(args.transform));
  ForHalves(args.transform.right_size, [&](auto halves) {
    Launch<decltype(halves)::value>(args, stream);
    return true;
  });
}

}  // namespace flatquant::cuda
