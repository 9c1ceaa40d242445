#include "flatquant/runtime/generate.h"

#include <algorithm>
#include <chrono>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

GenerateResult Generate(const Engine& engine, Sequence& sequence, std::span<const int32_t> prompt,
                        const GenerateOptions& options,
                        const std::function<bool(int32_t)>& on_token) {
  if (prompt.empty()) {
    throw Error("generate.empty_prompt", "prompt", "it has no tokens",
                "give some text, or a tokenizer that adds a BOS token");
  }
  const std::vector<int32_t>& eos = engine.config().eos;
  Sampler sampler(options.sampler);
  Sampler* const samplers[] = {&sampler};
  const auto next = [&](std::span<const int32_t> tokens) {
    const BatchItem item{&sequence, tokens};
    int32_t token = 0;
    engine.SampleBatch({&item, 1}, samplers, {&token, 1});
    return token;
  };
  GenerateResult result;
  auto start = std::chrono::steady_clock::now();
  int32_t token = next(prompt);
  result.prefill_seconds = SecondsSince(start);
  start = std::chrono::steady_clock::now();
  while (static_cast<int64_t>(result.tokens.size()) < options.max_tokens) {
    if (options.stop_at_eos && std::find(eos.begin(), eos.end(), token) != eos.end()) {
      result.stop = GenerateResult::Stop::kEos;
      break;
    }
    result.tokens.push_back(token);
    if (on_token && !on_token(token)) {
      result.stop = GenerateResult::Stop::kCallback;
      break;
    }
    // The last token wanted need not be run.
    if (static_cast<int64_t>(result.tokens.size()) == options.max_tokens) break;
    if (sequence.length() == sequence.capacity()) {
      result.stop = GenerateResult::Stop::kCapacity;
      break;
    }
    token = next({&token, 1});
  }
  result.decode_seconds = SecondsSince(start);
  return result;
}

}  // namespace flatquant
