#pragma once

#include "flatquant/kernels/kron_quantize/cuda_kron_quantize.h"

// The kernels behind CudaKronQuantize, for its dispatch and its test.
namespace flatquant::cuda {

// Any L and R, from sm_80. Needs a transform.
void KronQuantizeMma(const CudaKronQuantizeArgs& args, CudaStream stream);

// sm_90a, R of 64 or 128, L up to R. KronQuantizeWgmma leaves codes (bits < 16) of many tokens
// of a plain input to KronQuantizeStream, which takes any number of them.
bool KronQuantizeWgmmaSupports(const CudaKronTransform& transform);
void KronQuantizeWgmma(const CudaKronQuantizeArgs& args, CudaStream stream);
void KronQuantizeStream(const CudaKronQuantizeArgs& args, CudaStream stream);

// sm_90a, even R up to 256, L up to 64, 128 or 192 as R and shared memory allow: the widths of
// models that the one above leaves. x_stride a multiple of 8.
bool KronQuantizeWideSupports(const CudaKronTransform& transform);
void KronQuantizeWide(const CudaKronQuantizeArgs& args, CudaStream stream);

// Throws "cuda.unsupported_width" where a CTA cannot have so many bytes of shared memory.
void CheckKronShared(int64_t bytes, int64_t width);

// Without a transform.
void QuantizeRows(const CudaKronQuantizeArgs& args, CudaStream stream);

}  // namespace flatquant::cuda
