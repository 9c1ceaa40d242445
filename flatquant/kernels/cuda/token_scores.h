#pragma once

#include <cstdint>

#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// nll[i] = log sum_j exp(logits[i][j]) - logits[i][targets[i]], and top[i], the index of
// row i's largest logit, of equals the lowest. All pointers are device memory; the call
// launches and returns.
struct CudaTokenScoresArgs {
  const float* logits = nullptr;  // [rows, vocab]
  int64_t rows = 0;
  int64_t vocab = 0;
  const int32_t* targets = nullptr;  // [rows]
  float* nll = nullptr;              // [rows]
  int32_t* top = nullptr;            // [rows]
};

void CudaTokenScores(const CudaTokenScoresArgs& args, CudaStream stream);

}  // namespace flatquant
