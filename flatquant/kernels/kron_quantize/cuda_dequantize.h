#pragma once

#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// y[t][c] = scales[t] * codes[t][c]: quantized activations for a linear whose weights
// are floats. All pointers are device memory; the call launches and returns.
struct CudaDequantizeArgs {
  const int8_t* codes = nullptr;  // [tokens, code_stride]
  int64_t code_stride = 0;
  const float* scales = nullptr;  // [tokens]
  int64_t tokens = 0;
  int64_t width = 0;
  DType dtype = DType::kF16;  // of y: kF16 or kBF16
  void* y = nullptr;          // [tokens, width]
};

void CudaDequantize(const CudaDequantizeArgs& args, CudaStream stream);

}  // namespace flatquant
