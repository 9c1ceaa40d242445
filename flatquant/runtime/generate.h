#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "flatquant/runtime/engine.h"
#include "flatquant/runtime/sampler.h"

namespace flatquant {

struct GenerateOptions {
  int64_t max_tokens = 64;  // new tokens at most
  bool stop_at_eos = true;  // the ids in the model's configuration
  SamplerOptions sampler = {};
};

struct GenerateResult {
  enum class Stop { kMaxTokens, kEos, kCapacity, kCallback };
  std::vector<int32_t> tokens;  // the new ones; a final EOS is not among them
  Stop stop = Stop::kMaxTokens;
  double prefill_seconds = 0;  // the prompt's forward pass
  double decode_seconds = 0;   // all that came after
};

// Appends the prompt to the sequence, then tokens one by one. on_token is called
// with each new token as it comes; false stops. Stops when the sequence is full.
// Errors: generate.empty_prompt, Engine::Forward's, sampler.*.
GenerateResult Generate(const Engine& engine, Sequence& sequence, std::span<const int32_t> prompt,
                        const GenerateOptions& options,
                        const std::function<bool(int32_t)>& on_token = {});

}  // namespace flatquant
