#pragma once

#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

namespace flatquant::cuda {

// Starts a warpgroup's products of 64 rows and 128 columns with kTokens tokens, one group of
// wgmma. `packed`: this lane's bytes of its warp's 16-row block in shared memory; `act`: [kTokens,
// 128] as SwizzledOperand has it. `a` is left in use until they complete.
template <int kTokens>
__device__ __forceinline__ void MultiplyChunk(uint32_t packed, uint32_t act, uint32_t (&a)[16],
                                              int32_t (&acc)[kTokens / 2], bool accumulate) {
  uint32_t words[8];
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(packed));
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[4]), "=r"(words[5]), "=r"(words[6]), "=r"(words[7])
               : "r"(packed + 512));
#pragma unroll
  for (int i = 0; i < 8; ++i) WidenNibbles(words[i], a[2 * i], a[2 * i + 1]);
#pragma unroll
  for (int i = 0; i < 16; ++i) WgmmaPin(a[i]);
  WgmmaFence();
#pragma unroll
  for (int s = 0; s < 4; ++s) {
    WgmmaInt8<kTokens>::Run(acc, a[4 * s], a[4 * s + 1], a[4 * s + 2], a[4 * s + 3],
                            SwizzledOperand(act + 32 * s), accumulate || s > 0);
  }
  WgmmaCommit();
}

}  // namespace flatquant::cuda
