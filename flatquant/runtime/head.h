#pragma once

#include <cstdint>
#include <span>

#include "flatquant/base/thread_pool.h"
#include "flatquant/runtime/loaded_model.h"
#include "flatquant/runtime/site.h"

namespace flatquant {

// The network's two ends, which may share their table.

// stream [ids, hidden] = the embeddings of the ids, each in [0, vocab).
void EmbedTokens(const LoadedModel& model, std::span<const int32_t> ids, float* stream,
                 ThreadPool& pool);

// logits [tokens, vocab] of the residual stream after the last block, [tokens,
// hidden]: final norm and output projection. `buffers`: of at least as many tokens.
void ComputeLogits(const LoadedModel& model, const float* stream, int64_t tokens, float* logits,
                   SiteBuffers& buffers, ThreadPool& pool);

}  // namespace flatquant
