#include "flatquant/eval/perplexity.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"

namespace flatquant {

bool PerplexityMeter::Add(std::span<const float> nll) {
  FLATQUANT_CHECK(!nll.empty());
  double sum = 0;
  for (float value : nll) sum += value;
  if (!std::isfinite(sum)) return false;
  sum_ += sum / static_cast<double>(nll.size());
  ++windows_;
  return true;
}

double PerplexityMeter::Value() const {
  FLATQUANT_CHECK(windows_ > 0);
  return std::exp(sum_ / static_cast<double>(windows_));
}

EvalResult Perplexity(const Engine& engine, const TokenWindows& windows, const std::string& name) {
  FLATQUANT_CHECK(windows.count > 0 && windows.length >= 2);
  if (windows.length > engine.config().max_positions) {
    throw Error("eval.context", name,
                "windows of " + std::to_string(windows.length) +
                    " tokens do not fit the model's context of " +
                    std::to_string(engine.config().max_positions),
                "use a smaller --seqlen");
  }
  const auto start = std::chrono::steady_clock::now();
  Progress progress(name, static_cast<uint64_t>(windows.count));
  PerplexityMeter meter;
  Sequence sequence(engine, windows.length);
  std::vector<float> nll(static_cast<size_t>(windows.length - 1));
  for (int64_t i = 0; i < windows.count; ++i) {
    sequence.Clear();
    engine.TokenNll(sequence, {windows.window(i), static_cast<size_t>(windows.length)}, nll);
    if (!meter.Add(nll)) {
      throw Error("eval.not_finite", name + " window " + std::to_string(i),
                  "the model's output is not finite",
                  "its weights may be damaged or overflow; try --precision f32");
    }
    char note[48];
    std::snprintf(note, sizeof(note), "perplexity %.3f", meter.Value());
    progress.Advance(1, note);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return {.name = name,
          .metric = "perplexity",
          .value = meter.Value(),
          .tokens = windows.count * windows.length,
          .windows = windows.count,
          .seqlen = windows.length,
          .seconds = elapsed.count()};
}

}  // namespace flatquant
