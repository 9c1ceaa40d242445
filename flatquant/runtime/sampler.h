#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flatquant/base/rng.h"

namespace flatquant {

struct SamplerOptions {
  float temperature = 0.0f;  // 0: greedy, the largest logit (the lowest id of equal ones)
  int top_k = 0;             // only the k most likely tokens; 0: all
  float top_p = 1.0f;        // then the smallest set of them with at least this probability
  uint64_t seed = 0;
};

// Draws tokens from logits. The same options and logits give the same tokens on
// every platform.
class Sampler {
 public:
  // Errors: sampler.bad_option (negative or not finite temperature, negative
  // top_k, top_p outside (0, 1]).
  explicit Sampler(const SamplerOptions& options);

  // logits [vocab] -> a token id. Errors: sampler.bad_logits when one is NaN, or
  // none is finite.
  int32_t Next(std::span<const float> logits);

  // For who draws elsewhere by the same rules: what to draw by, and the number in [0, 1)
  // that the next draw takes (none when greedy).
  const SamplerOptions& options() const { return options_; }
  double Uniform() { return rng_.Uniform(); }

 private:
  struct Candidate {
    float logit;
    int32_t id;
  };

  SamplerOptions options_;
  Rng rng_;
  std::vector<Candidate> candidates_;  // scratch, kept between calls
};

}  // namespace flatquant
