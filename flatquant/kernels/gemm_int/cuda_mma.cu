#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Few tokens: y^T = W X^T with weights as the 16-row operand and up to 8 tokens as the
// 8-column one. Bound by the weights' bytes, so a CTA takes few rows and its warps
// share out the columns: 4096 rows still are 256 CTAs of 8 warps, enough loads in
// flight to fill the memory system. Partial sums are integers; adding them in any
// order gives the same result.

namespace flatquant::cuda {
namespace {

constexpr int kWarps = 8;

// Weights are read once: they would only push activations out of L1.
__device__ uint4 LoadOnce(const uint8_t* from) {
  uint4 x;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
               : "l"(from));
  return x;
}

// kTokens: blocks of 8 tokens per CTA; kRows: blocks of 16 rows per CTA; kAhead:
// chunks of 128 columns in flight per warp.
template <int kTokens, int kRows, int kAhead>
struct Slot {
  uint4 weight[kRows][2];
  uint32_t act[kTokens][8];
};

template <typename T, int kTokens, int kRows, int kAhead>
__global__ void __launch_bounds__(kWarps * 32) MmaKernel(CudaGemmIntArgs args) {
  __shared__ int32_t sums[kRows * 16][kTokens * 8];
  const int warp = threadIdx.x / 32;
  const int lane = threadIdx.x % 32;
  const int g = lane / 4;
  const int c = lane % 4;
  const int64_t token0 = blockIdx.x * int64_t{kTokens * 8};
  const int64_t block0 = blockIdx.y * int64_t{kRows};
  const int chunks = static_cast<int>((args.weights.cols + 127) / 128);
  const int64_t packed_chunks = CudaGemmIntPaddedCols(args.weights.cols) / 128;
  const uint8_t* weight = args.weights.packed + block0 / 8 * packed_chunks * kGemmIntTileBytes +
                          block0 % 8 * kGemmIntBlockBytes + lane * 16;

  const auto load = [&](Slot<kTokens, kRows, kAhead>& slot, int chunk) {
    if (chunk >= chunks) return;
    for (int i = 0; i < kRows; ++i) {
      const uint8_t* from = weight + int64_t{chunk} * kGemmIntTileBytes + i * kGemmIntBlockBytes;
      slot.weight[i][0] = LoadOnce(from);
      slot.weight[i][1] = LoadOnce(from + 512);
    }
    for (int n = 0; n < kTokens; ++n) {
      const int64_t token = token0 + 8 * n + g;
      const int8_t* from = args.act + token * args.act_stride + chunk * 128 + c * 4;
      for (int i = 0; i < 8; ++i) {
        // Rows end at a multiple of 64, half a chunk.
        const bool inside = token < args.tokens && chunk * 128 + i / 4 * 64 < args.act_stride;
        slot.act[n][i] = inside ? __ldg(reinterpret_cast<const uint32_t*>(from + 16 * i)) : 0;
      }
    }
  };

  int32_t acc[kRows][kTokens][4] = {};
  const auto multiply = [&](const Slot<kTokens, kRows, kAhead>& slot) {
    for (int i = 0; i < kRows; ++i) {
      const uint32_t words[8] = {slot.weight[i][0].x, slot.weight[i][0].y, slot.weight[i][0].z,
                                 slot.weight[i][0].w, slot.weight[i][1].x, slot.weight[i][1].y,
                                 slot.weight[i][1].z, slot.weight[i][1].w};
      for (int s = 0; s < 4; ++s) {
        uint32_t a0, a1, a2, a3;
        WidenNibbles(words[2 * s], a0, a1);
        WidenNibbles(words[2 * s + 1], a2, a3);
        for (int n = 0; n < kTokens; ++n) {
          MmaInt8(acc[i][n], a0, a1, a2, a3, slot.act[n][2 * s], slot.act[n][2 * s + 1]);
        }
      }
    }
  };

  Slot<kTokens, kRows, kAhead> slots[kAhead];
#pragma unroll
  for (int u = 0; u < kAhead; ++u) load(slots[u], warp + u * kWarps);
  for (int i = threadIdx.x; i < kRows * kTokens * 128; i += kWarps * 32) (&sums[0][0])[i] = 0;
  __syncthreads();
  for (int chunk = warp; chunk < chunks; chunk += kAhead * kWarps) {
#pragma unroll
    for (int u = 0; u < kAhead; ++u) {
      if (chunk + u * kWarps < chunks) multiply(slots[u]);
      load(slots[u], chunk + (u + kAhead) * kWarps);
    }
  }

#pragma unroll
  for (int i = 0; i < kRows; ++i) {
#pragma unroll
    for (int n = 0; n < kTokens; ++n) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (token0 + 8 * n + 2 * c + k % 2 >= args.tokens) continue;
        atomicAdd(&sums[16 * i + g + k / 2 * 8][8 * n + 2 * c + k % 2], acc[i][n][k]);
      }
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kRows * kTokens * 128; i += kWarps * 32) {
    const int64_t row = block0 * 16 + i % (kRows * 16);
    const int64_t token = token0 + i / (kRows * 16);
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

template <int kTokens, int kRows, int kAhead>
void Launch(const CudaGemmIntArgs& args, CudaStream stream) {
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.tokens, 8 * kTokens)),
                  static_cast<unsigned>(CeilDiv(args.weights.rows, 16 * kRows)));
  ForElement(args.dtype, [&](auto element) {
    MmaKernel<decltype(element), kTokens, kRows, kAhead><<<grid, kWarps * 32, 0, stream>>>(args);
  });
  CheckCudaLaunch("GemmIntMma");
}

}  // namespace

void GemmIntMma(const CudaGemmIntArgs& args, CudaStream stream) {
  // More rows per CTA as tokens grow, so that activations are not read from L2 more
  // often than weights from memory; fewer chunks ahead, as registers run out.
  if (args.tokens <= 8) {
    Launch<1, 1, 4>(args, stream);
  } else if (args.tokens <= 16) {
    Launch<2, 2, 2>(args, stream);
  } else {
    Launch<4, 4, 1>(args, stream);
  }
}

}  // namespace flatquant::cuda
