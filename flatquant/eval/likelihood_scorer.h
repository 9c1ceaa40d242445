#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flatquant/eval/boundary.h"

namespace flatquant {

struct LikelihoodScore {
  double log_likelihood = 0;  // of the continuation, nats
  bool greedy = false;        // whether greedy decoding gives the continuation
};

// The choices of one question, whose texts usually begin alike.
using LikelihoodGroup = std::vector<LikelihoodRequest>;

// Says how likely continuations are. An interface, so that the rules of tasks are
// tested without a model.
class LikelihoodScorer {
 public:
  virtual ~LikelihoodScorer() = default;

  // One score per choice of each group, in order.
  virtual std::vector<std::vector<LikelihoodScore>> Score(
      std::span<const LikelihoodGroup> groups) = 0;
};

}  // namespace flatquant
