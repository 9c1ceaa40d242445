#pragma once

#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

// The kernels behind CudaQuantizeKv, for its dispatch and its test.
namespace flatquant::cuda {

// A head's vectors of so many tokens are the rows of a product on the tensor cores.
constexpr int kHeadTokens = 16;

// Any GPU from sm_80: four warps for such a product, for steps.
void QuantizeKvMma(const CudaQuantizeKvArgs& args, CudaStream stream);

// sm_90a: a warp for it, and one transform for many heads, for prompts.
void QuantizeKvWgmma(const CudaQuantizeKvArgs& args, CudaStream stream);

}  // namespace flatquant::cuda
