#pragma once

#include <cstdint>

#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// The integer linear layer of gemm_int.h with weights of 8 bits and float results, as an
// output projection has them:
//
//   y[m][r] = act_scale[m] * weight_scale[r] * sum_c act[m][c] * weight[r][c]
//
// Weights stay in rows, as files hold them, and were complete before the chain of launches
// that the call continues (cuda/dependent_launch.cuh). The sum is exact in int32. All pointers are
// device memory; the call launches and returns, it neither allocates nor waits.
struct CudaGemmInt8Args {
  const int8_t* act = nullptr;       // [tokens, act_stride], 16-byte aligned
  int64_t act_stride = 0;            // bytes, a multiple of 16, >= cols; zeros beyond cols
  const float* act_scale = nullptr;  // [tokens]
  int64_t tokens = 0;
  const int8_t* weight = nullptr;       // [rows, weight_stride], 16-byte aligned
  int64_t weight_stride = 0;            // bytes, a multiple of 16, >= cols; zeros beyond cols
  const float* weight_scale = nullptr;  // [rows]
  int64_t rows = 0;
  int64_t cols = 0;
  float* y = nullptr;    // [tokens, y_stride]
  int64_t y_stride = 0;  // elements, >= rows
};

void CudaGemmInt8(const CudaGemmInt8Args& args, CudaStream stream);

}  // namespace flatquant
