#pragma once

#include <algorithm>
#include <type_traits>

#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"
#include "flatquant/kernels/kron_quantize/cuda_input.cuh"

// Both products of a token by wgmma, the first one's result never leaving registers:
//
//   Z^T = right^T X^T   (right^T and X from shared memory)
//   Y^T = Z^T left      (Z^T as the register operand, left from shared memory)
//
// A wgmma's result has the register layout of the next one's operand, as in flash
// attention. A warpgroup makes 64 rows of Y^T. Here: how a token and its matrices lie in
// shared memory, the products, and how accumulators leave registers. cuda_wgmma_sm90.cu takes
// every input, cuda_stream_sm90.cu many tokens of a plain one.
namespace flatquant::cuda {

// kLeft: L rounded up to what wgmma widths are built for; kRight: R.
template <int kLeft, int kRight>
struct KronTile {
  static constexpr int kThreads = 2 * kRight;  // a warpgroup per 64 elements of R
  // Registers for 128 threads per 64 of R: small tiles leave room for more CTAs.
  static constexpr int kMinBlocks = kRight == 64 ? 5 : kLeft == 32 ? 4 : 2;
  // Operands are panels of 64 elements along K: 128 bytes per row, swizzled.
  static constexpr int kRightPanel = kRight * 128;
  static constexpr int kLeftPanel = kLeft * 128;
  static constexpr int kRightBytes = kRight / 64 * kRightPanel;
  static constexpr int kLeftBytes = (kLeft + 63) / 64 * kLeftPanel;
  static constexpr int kXBytes = kRight / 64 * kLeftPanel;
  static constexpr int kRowsPerLoad = 16;  // of X, when each thread has 16 bytes
  static constexpr int kLoads = kLeft / kRowsPerLoad;
  static constexpr int kRowsPerStore = 32;  // when each thread has 16 codes
  static constexpr int kSharedBytes = 1024 + kRightBytes + kLeftBytes + kXBytes;
};

__device__ __forceinline__ uint32_t PanelAddress(uint32_t base, int panel_bytes, int row,
                                                 int chunk) {
  return base + chunk / 8 * panel_bytes + row * 128 + ((chunk % 8 ^ row % 8) << 4);
}

// Starts copying a packed square matrix (rows of `stride` elements, zero-padded) into
// panels of kRows rows and kCols columns; row i of them is the matrix's row source(i).
template <int kRows, int kCols, typename Source>
__device__ __forceinline__ void LoadMatrixPanels(const uint16_t* from, int stride, uint32_t to,
                                                 const Source& source) {
  for (int i = threadIdx.x; i < kRows * kCols / 8; i += blockDim.x) {
    const int row = i / (kCols / 8);
    const int chunk = i % (kCols / 8);
    const bool inside = row < stride && chunk * 8 < stride;
    CopyAsync16(PanelAddress(to, kRows * 128, row, chunk),
                inside ? from + source(row) * stride + chunk * 8 : from, inside ? 16 : 0);
  }
}
template <int kRows, int kCols>
__device__ __forceinline__ void LoadMatrixPanels(const uint16_t* from, int stride, uint32_t to) {
  LoadMatrixPanels<kRows, kCols>(from, stride, to, [](int row) { return row; });
}

// Starts a warpgroup's 64 rows of Z^T.
template <typename T, int kLeft, int kRight>
__device__ __forceinline__ void StartRightProduct(float (&acc)[kLeft / 2], uint32_t right,
                                                  uint32_t x) {
  using Tile = KronTile<kLeft, kRight>;
  const int group = threadIdx.x / 128;
  WgmmaFence();
#pragma unroll
  for (int s = 0; s < kRight / 16; ++s) {
    Wgmma16<T, kLeft>::Run(
        acc, SwizzledOperand(right + s / 4 * Tile::kRightPanel + group * 64 * 128 + s % 4 * 32),
        SwizzledOperand(x + s / 4 * Tile::kLeftPanel + s % 4 * 32), s > 0);
  }
  WgmmaCommit();
}

// Rounds Z^T, when it is there, and starts Y^T.
template <typename T, int kLeft, int kRight>
__device__ __forceinline__ void StartLeftProduct(float (&acc)[kLeft / 2], uint32_t left) {
  using Tile = KronTile<kLeft, kRight>;
#pragma unroll
  for (int i = 0; i < kLeft / 2; ++i) WgmmaPin(acc[i]);
  uint32_t z[kLeft / 4];
#pragma unroll
  for (int i = 0; i < kLeft / 4; ++i) z[i] = Element<T>::Pack(acc[2 * i], acc[2 * i + 1]);
#pragma unroll
  for (int i = 0; i < kLeft / 4; ++i) WgmmaPin(z[i]);
  WgmmaFence();
#pragma unroll
  for (int s = 0; s < kLeft / 16; ++s) {
    Wgmma16<T, kLeft>::Run(acc, z[4 * s], z[4 * s + 1], z[4 * s + 2], z[4 * s + 3],
                           SwizzledOperand(left + s / 4 * Tile::kLeftPanel + s % 4 * 32), s > 0);
  }
  WgmmaCommit();
}

// The accumulators, [64 of R][kLeft], to shared memory as X was there: [l][r] of 16
// bits. pair(a, b) makes a word of two values.
template <int kLeft, typename Pair>
__device__ __forceinline__ void StageTransposed(const float (&acc)[kLeft / 2], uint32_t panel,
                                                const Pair& pair) {
  const int warp = threadIdx.x / 32 % 4;
  const int lane = threadIdx.x % 32;
  const int row = lane / 16 * 8 + lane % 8;
  const uint32_t address = panel + row * 128 + (((warp * 2 + lane / 8 % 2) ^ lane % 8) << 4);
#pragma unroll
  for (int j = 0; j < kLeft / 8; j += 2) {
    const float* d = acc + 4 * j;
    StoreMatrixTransposed(address + j * 1024, pair(d[0], d[1]), pair(d[2], d[3]), pair(d[4], d[5]),
                          pair(d[6], d[7]));
  }
}

// The largest and smallest accumulators, beside 0. Floats of one sign order like
// integers, and integers have a maximum of three: as signed numbers negative floats are
// below 0, as unsigned ones positive floats are below -0.
template <int kCount>
__device__ __forceinline__ void TakeExtremes(const float (&acc)[kCount], Extremes& extremes) {
  constexpr int kChains = 4;  // apart, so that one does not wait for the other
  int max[kChains] = {};
  unsigned min[kChains] = {0x80000000u, 0x80000000u, 0x80000000u, 0x80000000u};
#pragma unroll
  for (int i = 0; i < kCount; i += 2) {
    const int chain = i / 2 % kChains;
    max[chain] = __vimax3_s32(max[chain], __float_as_int(acc[i]), __float_as_int(acc[i + 1]));
    min[chain] = __vimax3_u32(min[chain], __float_as_uint(acc[i]), __float_as_uint(acc[i + 1]));
  }
  extremes.max = __int_as_float(__vimax3_s32(max[0], max[1], ::max(max[2], max[3])));
  extremes.min = __uint_as_float(__vimax3_u32(min[0], min[1], ::max(min[2], min[3])));
}

// Brings a later token's input into L2 while this one is computed: CTAs run in step, and without
// it memory would rest while they compute. By one thread.
template <typename T>
__device__ __forceinline__ void PrefetchToken(const CudaKronQuantizeArgs& args, int64_t token) {
  if (threadIdx.x != 0 || token >= args.tokens) return;
  const uint32_t bytes = static_cast<uint32_t>(args.width) * 2 & ~15u;
  if (bytes == 0) return;
  BulkPrefetch(static_cast<const T*>(args.x) + token * args.x_stride, bytes);
  if (args.input == CudaSiteInput::kSwiglu) {
    BulkPrefetch(static_cast<const T*>(args.up) + token * args.x_stride, bytes);
  }
}

// The smallest tile that takes a transform (KronQuantizeWgmmaSupports): calls launch with kLeft and
// kRight as types.
template <typename Launch>
void ForKronTile(const CudaKronTransform& transform, const Launch& launch) {
  const auto with = [&]<int kLeft, int kRight>() {
    launch(std::integral_constant<int, kLeft>{}, std::integral_constant<int, kRight>{});
  };
  const int64_t left = transform.left_size;
  if (transform.right_size == 64) {
    with.template operator()<64, 64>();
  } else if (left <= 32) {
    with.template operator()<32, 128>();
  } else if (left <= 64) {
    with.template operator()<64, 128>();
  } else if (left <= 96) {
    with.template operator()<96, 128>();
  } else if (left <= 112) {
    with.template operator()<112, 128>();
  } else {
    with.template operator()<128, 128>();
  }
}

// As many CTAs as run at once, one for each token at most.
template <typename Kernel>
int64_t CtasOf(Kernel* kernel, int64_t tokens, int threads, size_t shared_bytes) {
  int per_sm = 0;
  FLATQUANT_CUDA(
      cudaOccupancyMaxActiveBlocksPerMultiprocessor(&per_sm, kernel, threads, shared_bytes));
  return std::min<int64_t>(tokens, int64_t{per_sm} * CurrentCudaDevice().sm_count);
}

}  // namespace flatquant::cuda
