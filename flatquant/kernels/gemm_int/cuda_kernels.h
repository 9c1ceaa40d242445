#pragma once

#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"

// The kernels behind CudaGemmInt, for its dispatch and its test.
namespace flatquant::cuda {

// The packed layout. A 16-row block's 128 columns are 1024 bytes, the fragments of
// four 16x32 products: lane l (g = l / 4, c = l % 4) owns 16 bytes at 16 l and 16 at
// 512 + 16 l, together words 0..7. Word 2 s + h holds, for columns
// 32 s + 16 h + 4 c + i, row g in the low nibble of byte i and row g + 8 in the high.
// Eight blocks (128 rows) of the same columns lie together, then the next columns.
inline constexpr int kGemmIntBlockBytes = 1024;
inline constexpr int kGemmIntTileBytes = 8 * kGemmIntBlockBytes;

// Any GPU from sm_80, made for few tokens: every weight is read once per 8, 16 or 32
// tokens, straight from memory into tensor-core fragments.
void GemmIntMma(const CudaGemmIntArgs& args, CudaStream stream);

// sm_90a, made for up to 8 tokens: one wave of CTAs, each a continuous flow of weights. Takes
// what activations and sums leave room for in shared memory.
bool GemmIntFlowTakes(const CudaGemmIntArgs& args);
void GemmIntFlow(const CudaGemmIntArgs& args, CudaStream stream);

// sm_90a, made for some tokens: the CTAs of a cluster share out their tile's columns.
void GemmIntSplit(const CudaGemmIntArgs& args, CudaStream stream);

// sm_90a, made for many tokens.
void GemmIntWgmma(const CudaGemmIntArgs& args, CudaStream stream);

}  // namespace flatquant::cuda
