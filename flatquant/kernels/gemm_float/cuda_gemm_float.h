#pragma once

#include <cstdint>
#include <memory>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// The float linear layer on a GPU, by cuBLASLt, with float sums:
//
//   y[m][r] = sum_c x[m][c] * weight[r][c] + bias[r] + residual[m][r]
//
// All pointers are device memory, 16-byte aligned; strides are in elements.
struct CudaGemmFloatArgs {
  DType dtype = DType::kF16;  // of x, weight, bias and residual: kF16 or kBF16
  const void* x = nullptr;    // [tokens, x_stride]
  int64_t x_stride = 0;       // >= cols
  int64_t tokens = 0;
  const void* weight = nullptr;  // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  const void* bias = nullptr;      // [rows] or nullptr
  const void* residual = nullptr;  // [tokens, y_stride] or nullptr; may be y
  DType y_dtype = DType::kF16;     // dtype, or kF32 where there is neither bias nor residual
  void* y = nullptr;               // [tokens, y_stride]
  int64_t y_stride = 0;            // >= rows
};

// A cuBLASLt handle with its workspace, and the algorithms that it chose, one for each
// shape. For one stream at a time. A call launches and returns; the first of a shape
// asks cuBLASLt for an algorithm, so that it must not be the one that is captured.
// Errors: cuda.failed, also where cuBLASLt knows no algorithm.
class CudaGemmFloat {
 public:
  CudaGemmFloat();
  ~CudaGemmFloat();
  void operator()(const CudaGemmFloatArgs& args, CudaStream stream);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace flatquant
