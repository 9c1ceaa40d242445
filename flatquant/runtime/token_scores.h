#pragma once

#include <cstdint>
#include <span>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/runtime/loaded_model.h"
#include "flatquant/runtime/site.h"

namespace flatquant {

// What a network says of one token at its place in a text.
struct TokenScore {
  float nll = 0;        // -log p(token | all before it), nats
  bool greedy = false;  // whether no token is likelier (of equals the lowest id counts)
};

// What turns a position's logits into probabilities: log p(i) = logits[i] - log_sum.
struct LogitSummary {
  int32_t top = 0;     // the likeliest token; of equals the lowest id
  double log_sum = 0;  // log of the sum of exp(logit)
};
LogitSummary SummarizeLogits(std::span<const float> logits);

// scores[t] of targets[t] by the logits of row t. `stream`, the residual stream
// after the last block, is [targets, hidden]. Only as many rows of logits as `scratch`
// then holds are in memory at once. `buffers`: of at least as many tokens.
void ComputeTokenScores(const LoadedModel& model, const float* stream,
                        std::span<const int32_t> targets, std::span<TokenScore> scores,
                        AlignedBuffer<float>& scratch, SiteBuffers& buffers, ThreadPool& pool);

}  // namespace flatquant
