#pragma once

#include "flatquant/base/thread_pool.h"
#include "flatquant/bench/end_to_end.h"
#include "flatquant/bench/result.h"
#include "flatquant/model/config.h"

namespace flatquant::bench {

// Single operations on the shapes of a network, with random contents. Weights and
// caches are rotated through so much memory that no cache holds them.

// The products of every distinct linear, W4A4 and bf16, for each batch and prompt as
// the number of tokens: operations against the arithmetic peak where there are many
// tokens, bytes of weights against the read bandwidth where there are few.
void RunLinears(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run);

// One layer's attention with caches of 4 and 16 bits, at each depth: ppN and tg1 of
// each batch. Decoding is held against the read bandwidth over K and V.
void RunAttention(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run);

// The remaining kernels at a step of each batch and a pass of each prompt: what stands
// before each site, and what Q, K and V pass through before attention.
void RunKernels(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run);

}  // namespace flatquant::bench
