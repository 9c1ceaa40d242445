#pragma once

#include <cstdint>
#include <span>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/runtime/loaded_model.h"

namespace flatquant {

// The network's head: final norm and output projection. `stream` is the residual
// stream after the last block, [tokens, hidden]; it is normalised in place.

// logits [tokens, vocab]
void ComputeLogits(const LoadedModel& model, float* stream, int64_t tokens, float* logits,
                   ThreadPool& pool);

// nll[t] = -log softmax(logits of t)[targets[t]], in nats, over slices of the
// vocabulary, so that only `scratch` (made as large as need be) holds logits.
void ComputeNll(const LoadedModel& model, float* stream, std::span<const int32_t> targets,
                std::span<float> nll, AlignedBuffer<float>& scratch, ThreadPool& pool);

}  // namespace flatquant
