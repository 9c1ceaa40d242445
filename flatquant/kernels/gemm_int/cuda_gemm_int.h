#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// The integer linear layer of gemm_int.h on a GPU, with a residual:
//
//   y[m][r] = act_scale[m] * weight_scale[r] * sum_c act[m][c] * weight[r][c]
//             + bias[r] + residual[m][r]
//
// weight: 2..4 bits; the sum is exact in int32, the rest is computed in float and
// rounded once to y's type. All pointers are device memory. Calls launch on the
// stream and return; they neither allocate nor wait.

// Weights are padded with zeros to a multiple of this both ways: kernels take pairs
// of 128 x 128 tiles without bounds checks.
inline constexpr int64_t kCudaGemmIntAlign = 256;

constexpr int64_t CudaGemmIntPaddedRows(int64_t rows) {
  return (rows + kCudaGemmIntAlign - 1) / kCudaGemmIntAlign * kCudaGemmIntAlign;
}

constexpr int64_t CudaGemmIntPaddedCols(int64_t cols) { return CudaGemmIntPaddedRows(cols); }

// Bytes of packed weights.
constexpr int64_t CudaGemmIntPackedBytes(int64_t rows, int64_t cols) {
  return CudaGemmIntPaddedRows(rows) * CudaGemmIntPaddedCols(cols) / 2;
}

struct CudaGemmIntWeights {
  int64_t rows = 0;
  int64_t cols = 0;
  const uint8_t* packed = nullptr;  // [CudaGemmIntPackedBytes], 128-byte aligned
  const float* scale = nullptr;     // [CudaGemmIntPaddedRows], 16-byte aligned
  const float* bias = nullptr;      // the same, or nullptr
};

// Brings canonical nibbles [rows, ceil(cols / 2)] into the kernels' layout, once at
// load. One layout serves every kernel, so weights are on the GPU once. Wait for it before
// the weights are used: a launch may read them before its predecessor on the stream has
// ended (cuda/dependent_launch.cuh).
void CudaPackGemmInt(const uint8_t* canonical, int64_t rows, int64_t cols, uint8_t* packed,
                     CudaStream stream);

struct CudaGemmIntArgs {
  const int8_t* act = nullptr;       // [tokens, act_stride], 16-byte aligned
  int64_t act_stride = 0;            // bytes, a multiple of 64, >= cols; zeros beyond cols
  const float* act_scale = nullptr;  // [tokens]
  int64_t tokens = 0;
  CudaGemmIntWeights weights;
  DType dtype = DType::kF16;       // of residual and y: kF16 or kBF16
  const void* residual = nullptr;  // [tokens, y_stride] or nullptr; may be y
  // [tokens, y_stride], 16-byte aligned; elements between rows and the next multiple
  // of 8 are overwritten.
  void* y = nullptr;
  int64_t y_stride = 0;  // elements, a multiple of 8, >= rows
};

void CudaGemmInt(const CudaGemmIntArgs& args, CudaStream stream);

}  // namespace flatquant
