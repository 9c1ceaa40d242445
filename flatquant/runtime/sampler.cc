#include "flatquant/runtime/sampler.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

void CheckOptions(const SamplerOptions& options) {
  const auto fail = [](const std::string& what, const std::string& hint) {
    throw Error("sampler.bad_option", "sampling", what, hint);
  };
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    fail("temperature is " + std::to_string(options.temperature), "use 0 (greedy) or more");
  }
  if (options.top_k < 0) {
    fail("top_k is " + std::to_string(options.top_k), "use 0 (all tokens) or more");
  }
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    fail("top_p is " + std::to_string(options.top_p), "use a number above 0, up to 1");
  }
}

// The id of the largest logit, the first of equal ones.
int32_t Largest(std::span<const float> logits) {
  int32_t best = -1;
  for (size_t i = 0; i < logits.size(); ++i) {
    if (std::isnan(logits[i])) {
      throw Error("sampler.bad_logits", "token id " + std::to_string(i), "its logit is NaN",
                  "the model's weights are damaged");
    }
    if (best < 0 || logits[i] > logits[static_cast<size_t>(best)]) best = static_cast<int32_t>(i);
  }
  if (best < 0 || !std::isfinite(logits[static_cast<size_t>(best)])) {
    throw Error("sampler.bad_logits", "logits", "the largest is not a finite number",
                "the model's weights are damaged");
  }
  return best;
}

}  // namespace

Sampler::Sampler(const SamplerOptions& options) : options_(options), rng_(options.seed) {
  CheckOptions(options);
}

int32_t Sampler::Next(std::span<const float> logits) {
  const int32_t best = Largest(logits);
  if (options_.temperature == 0) return best;

  candidates_.resize(logits.size());
  for (size_t i = 0; i < logits.size(); ++i) candidates_[i] = {logits[i], static_cast<int32_t>(i)};
  const auto more_likely = [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  };
  size_t kept = candidates_.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<size_t>(options_.top_k));
  // Most of the probability usually lies in few tokens: only a prefix is sorted,
  // and a longer one when top_p asks for it.
  size_t sorted = 0;
  const auto sort_prefix = [&](size_t count) {
    std::partial_sort(candidates_.begin() + static_cast<std::ptrdiff_t>(sorted),
                      candidates_.begin() + static_cast<std::ptrdiff_t>(count), candidates_.end(),
                      more_likely);
    sorted = count;
  };
  if (kept < candidates_.size()) sort_prefix(kept);

  const float top = logits[static_cast<size_t>(best)];
  const auto weight = [&](float logit) {
    return std::exp((static_cast<double>(logit) - top) / options_.temperature);
  };
  double total = 0;
  for (size_t i = 0; i < kept; ++i) total += weight(candidates_[i].logit);
  if (options_.top_p < 1) {
    const double wanted = total * options_.top_p;
    double reached = 0;
    size_t count = 0;
    while (count < kept && reached < wanted) {
      if (count == sorted) sort_prefix(std::min(kept, std::max<size_t>(64, 2 * sorted)));
      reached += weight(candidates_[count++].logit);
    }
    kept = count;
    total = reached;
  }
  double remaining = rng_.Uniform() * total;
  for (size_t i = 0; i < kept; ++i) {
    remaining -= weight(candidates_[i].logit);
    if (remaining < 0) return candidates_[i].id;
  }
  // Rounding left a crumb: the last candidate that has any weight.
  for (size_t i = kept; i-- > 0;) {
    if (weight(candidates_[i].logit) > 0) return candidates_[i].id;
  }
  return best;
}

}  // namespace flatquant
