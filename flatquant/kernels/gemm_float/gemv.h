#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"

namespace flatquant {

// GemmFloat for few tokens: each weight row is read once, widened in the L1 cache
// and multiplied with every token. x_bf16: the activations rounded to bfloat16
// where the weights' math says so, else unused.
void Gemv(const GemmFloatArgs& args, const uint16_t* x_bf16, ThreadPool& pool) noexcept;

}  // namespace flatquant
