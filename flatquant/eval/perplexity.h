#pragma once

#include <cstdint>
#include <vector>

#include "flatquant/eval/perplexity_state.h"
#include "flatquant/eval/result.h"
#include "flatquant/eval/text_windows.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// Perplexity as the field computes it: exp of the mean negative log-likelihood of
// the scored tokens, each window being run on its own. Its error is that of a mean
// over tokens, as llama-perplexity gives it. Shows the running value on stderr.
//
// state, where given, holds and keeps the finished windows of the run `key`, so that
// an interrupted evaluation goes on where it was.
//
// Errors: eval.context (windows longer than the model's maximum), eval.not_finite
// (the model's output is NaN or infinite), eval.bad_state (the run of this key does
// not fit the windows), runtime.*.
EvalResult Perplexity(const Engine& engine, const TextWindows& text,
                      PerplexityState* state = nullptr, uint64_t key = 0);

// The figure of a text whose scored tokens' likelihoods are known.
EvalResult PerplexityOf(const TextWindows& text, std::vector<float> nll, double seconds);

// Throws eval.context unless the windows fit the model.
void CheckContext(const TextWindows& text, int64_t max_positions);

}  // namespace flatquant
