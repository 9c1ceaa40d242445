#pragma once

#include <cstdint>

#include "flatquant/kernels/cuda/stream.h"

namespace flatquant {

// Draws a token per row of logits, as runtime/sampler.h does: greedy with temperature
// 0 (the lowest id of equal logits), else from softmax(logits / temperature) cut to the
// top_k most likely and then to the smallest set of them with probability top_p. Tokens
// are ordered by logit, then by id. Weights are held as multiples of 2^-40 of the
// largest, so sums are exact and a row's token does not depend on any order of addition.
// Pointers are device memory, uniform and tokens may be pinned host memory; the call launches
// and returns.
struct CudaSampleArgs {
  const float* logits = nullptr;  // [rows, vocab]
  int64_t rows = 0;
  int64_t vocab = 0;  // below 2^23
  float temperature = 0;
  int top_k = 0;  // 0: all
  float top_p = 1;
  const float* uniform = nullptr;  // [rows], in [0, 1); unused when greedy
  int32_t* tokens = nullptr;       // [rows]; -1 where a logit is NaN or none is finite
};

void CudaSample(const CudaSampleArgs& args, CudaStream stream);

}  // namespace flatquant
