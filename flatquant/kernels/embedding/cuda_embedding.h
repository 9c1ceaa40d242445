#pragma once

#include <cstdint>

#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// y[i] = table[ids[i]] for a table of 16-bit elements of any type. All pointers are
// device memory; the call launches and returns. An id outside [0, vocab) gives zeros:
// ids are checked where they come in, on the host, but for those that the GPU drew.
struct CudaEmbeddingArgs {
  const void* table = nullptr;  // [vocab, cols], 16-byte aligned
  int64_t vocab = 0;
  const int32_t* ids = nullptr;  // [rows]
  int64_t rows = 0;
  int64_t cols = 0;   // a multiple of 8
  void* y = nullptr;  // [rows, cols], 16-byte aligned
};

void CudaEmbedding(const CudaEmbeddingArgs& args, CudaStream stream);

}  // namespace flatquant
