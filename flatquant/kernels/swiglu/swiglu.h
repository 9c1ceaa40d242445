#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"

namespace flatquant {

// y[i] = silu(gate[i]) * up[i], silu(g) = g / (1 + exp(-g))
struct SwigluArgs {
  const float* gate = nullptr;  // [rows, cols]
  const float* up = nullptr;    // [rows, cols]
  int64_t rows = 0;
  int64_t cols = 0;
  float* y = nullptr;  // [rows, cols]; may be gate or up
};

struct SwigluKernel {
  void (*run)(const SwigluArgs& args, int64_t row_begin, int64_t row_end) noexcept;
};

void Swiglu(const SwigluArgs& args, ThreadPool& pool) noexcept;

}  // namespace flatquant
