#pragma once

#include <cstdint>
#include <span>
#include <string>

#include "flatquant/data/token_windows.h"
#include "flatquant/eval/result.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// Perplexity as the field computes it: exp of the mean, over windows, of a
// window's mean negative log-likelihood. All windows of a source have the same
// length, so this is the mean over all predicted tokens.
class PerplexityMeter {
 public:
  // nll [length - 1]: nats of each predicted token of one window. Returns false,
  // and leaves the meter as it was, when one of them is not finite.
  bool Add(std::span<const float> nll);

  int64_t windows() const { return windows_; }
  double Value() const;  // of the windows so far, at least one

 private:
  double sum_ = 0;  // of the windows' means
  int64_t windows_ = 0;
};

// Runs every window (length >= 2) through the engine on its own and reports
// progress with the running value on stderr. `name` is for the result and the
// progress line. Errors: eval.context (windows longer than the model's maximum),
// eval.not_finite (the model's output is NaN or infinite), runtime.*.
EvalResult Perplexity(const Engine& engine, const TokenWindows& windows, const std::string& name);

}  // namespace flatquant
