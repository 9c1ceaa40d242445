#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"
#include "flatquant/kernels/gemm_int/cuda_gemm_int.h"

namespace flatquant {

// A linear layer with integer weights of 2..4 bits and activations that stay floats:
//
//   y[m][r] = weight_scale[r] * sum_c x[m][c] * weight[r][c] + bias[r] + residual[m][r]
//
// Weights are CudaPackGemmInt's, widened (exactly) on their way to the tensor cores; sums
// are float. All pointers are device memory; the call launches and returns, it neither
// allocates nor waits.
struct CudaGemmW4A16Args {
  DType dtype = DType::kF16;  // of x, residual and y: kF16 or kBF16
  const void* x = nullptr;    // [tokens, x_stride], 16-byte aligned
  int64_t x_stride = 0;       // elements, a multiple of 8, >= cols
  int64_t tokens = 0;
  CudaGemmIntWeights weights;      // cols a multiple of 8
  const void* residual = nullptr;  // [tokens, y_stride] or nullptr; may be y
  void* y = nullptr;               // [tokens, y_stride]
  int64_t y_stride = 0;            // elements, >= rows
};

void CudaGemmW4A16(const CudaGemmW4A16Args& args, CudaStream stream);

}  // namespace flatquant
