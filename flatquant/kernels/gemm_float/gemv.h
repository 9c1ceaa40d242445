#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"

namespace flatquant {

// The float linear layer of few tokens (GemmFloatArgs' formula): each weight row is
// read once, at the speed of memory, widened in registers and multiplied with every
// token.
struct GemvArgs {
  const FloatWeights* weights = nullptr;
  int64_t row_begin = 0;    // of the weights; y starts with it
  const void* x = nullptr;  // what Arrange made, [tokens, x_stride bytes]
  int64_t x_stride = 0;
  int64_t tokens = 0;
  float* y = nullptr;  // [tokens, y_stride]
  int64_t y_stride = 0;
};

struct GemvKernel {
  // Bytes of an arranged token, a multiple of 64.
  int64_t (*arranged_bytes)(const FloatWeights& weights) noexcept;
  // One token's x [cols] as the kernel reads it: in the order in which weights come
  // out of their registers, zeros up to arranged_bytes. Rounded to bfloat16 where the
  // weights' math says so.
  void (*arrange)(const FloatWeights& weights, const float* x, void* arranged) noexcept;
  // Rows [begin, end) of y, counted from row_begin.
  void (*run)(const GemvArgs& args, int64_t begin, int64_t end) noexcept;
};

// kernel: nullptr takes the best one.
void Gemv(const GemmFloatArgs& args, ThreadPool& pool, const GemvKernel* kernel = nullptr) noexcept;

}  // namespace flatquant
