#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/gemm_float/float_weights.h"

namespace flatquant {

// The float linear layer over rows [row_begin, row_end) of the weights:
//
//   y[m][r - row_begin] = sum_c x[m][c] W[r][c] + bias[r]
//
// with W as FloatWeights describes it and sums in float. The cut into tasks does
// not depend on the number of threads, nor does any result.
struct GemmFloatArgs {
  const float* x = nullptr;  // [tokens, cols]
  int64_t tokens = 0;
  const FloatWeights* weights = nullptr;
  int64_t row_begin = 0;
  int64_t row_end = 0;
  float* y = nullptr;    // [tokens, y_stride]
  int64_t y_stride = 0;  // elements, >= row_end - row_begin
};

// C [m, n] = A [m, k] B[n, k]^T, all row-major, on the calling thread alone.
// A and B are float, or bfloat16 bits for the second function.
struct GemmFloatKernel {
  void (*multiply_f32)(int64_t m, int64_t n, int64_t k, const float* a, const float* b, float* c,
                       int64_t c_stride) noexcept;
  void (*multiply_bf16)(int64_t m, int64_t n, int64_t k, const uint16_t* a, const uint16_t* b,
                        float* c, int64_t c_stride) noexcept;
};

// Whether a kernel's functions multiply two small matrices.
bool MultipliesRight(const GemmFloatKernel& kernel);

// Asks that of the best kernel, once in a process; throws "kernels.broken_products" otherwise:
// oneDNN fails beside a library that brings inline functions of another version of it.
void CheckGemmFloat();

// kernel: nullptr takes the best one.
void GemmFloat(const GemmFloatArgs& args, ThreadPool& pool,
               const GemmFloatKernel* kernel = nullptr) noexcept;

}  // namespace flatquant
