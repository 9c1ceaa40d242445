#pragma once

#include <map>
#include <memory>
#include <span>
#include <vector>

#include "flatquant/eval/likelihood_scorer.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// Scores with a model. What the choices of a group have in common runs once; all
// groups of a call run together, so that every weight is read once for many rows.
class EngineScorer : public LikelihoodScorer {
 public:
  explicit EngineScorer(const Engine& engine) : engine_(engine) {}

  // Requests fit the model's context: context and continuation have at most
  // max_positions + 1 tokens (the last one is not read).
  std::vector<std::vector<LikelihoodScore>> Score(std::span<const LikelihoodGroup> groups) override;

 private:
  // Sequences by their capacity: kept, since the next call needs alike ones.
  using Pool = std::multimap<int64_t, std::unique_ptr<Sequence>>;
  std::unique_ptr<Sequence> Take(int64_t length);
  void Return(std::unique_ptr<Sequence> sequence);

  const Engine& engine_;
  Pool free_;
};

}  // namespace flatquant
