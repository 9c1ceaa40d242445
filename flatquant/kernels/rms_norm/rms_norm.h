#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"

namespace flatquant {

// y[i][c] = x[i][c] * weight[c] / sqrt(mean_c x[i][c]^2 + eps)
struct RmsNormArgs {
  const float* x = nullptr;       // [rows, cols]
  const float* weight = nullptr;  // [cols]
  float eps = 1e-5f;
  int64_t rows = 0;
  int64_t cols = 0;
  float* y = nullptr;  // [rows, cols]; may be x
};

struct RmsNormKernel {
  void (*run)(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) noexcept;
};

void RmsNorm(const RmsNormArgs& args, ThreadPool& pool) noexcept;

}  // namespace flatquant
