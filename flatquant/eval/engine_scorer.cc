#include "flatquant/eval/engine_scorer.h"

#include <algorithm>
#include <utility>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// Sequences are made in multiples of this many positions, so that texts of about
// the same length share them.
constexpr int64_t kCapacityStep = 64;

// The tokens that a model reads: all but the last, which only is predicted.
std::vector<int32_t> Input(const LikelihoodRequest& request) {
  std::vector<int32_t> tokens = request.context;
  tokens.insert(tokens.end(), request.continuation.begin(), request.continuation.end() - 1);
  return tokens;
}

// How many tokens all inputs begin with and no choice is scored at: a choice's
// first score comes from its context's last token.
size_t SharedLength(const LikelihoodGroup& group, const std::vector<std::vector<int32_t>>& inputs) {
  if (group.size() < 2) return 0;
  size_t shared = group[0].context.size() - 1;
  for (size_t i = 1; i < group.size(); ++i) {
    shared = std::min(shared, group[i].context.size() - 1);
    const auto mismatch =
        std::mismatch(inputs[0].begin(), inputs[0].begin() + static_cast<std::ptrdiff_t>(shared),
                      inputs[i].begin());
    shared = static_cast<size_t>(mismatch.first - inputs[0].begin());
  }
  return shared;
}

}  // namespace

std::unique_ptr<Sequence> EngineScorer::Take(int64_t length) {
  const auto found = free_.lower_bound(length);
  if (found == free_.end()) {
    const int64_t capacity = (length + kCapacityStep - 1) / kCapacityStep * kCapacityStep;
    return std::make_unique<Sequence>(engine_, capacity);
  }
  std::unique_ptr<Sequence> sequence = std::move(found->second);
  free_.erase(found);
  sequence->Clear();
  return sequence;
}

void EngineScorer::Return(std::unique_ptr<Sequence> sequence) {
  const int64_t capacity = sequence->capacity();
  free_.emplace(capacity, std::move(sequence));
}

std::vector<std::vector<LikelihoodScore>> EngineScorer::Score(
    std::span<const LikelihoodGroup> groups) {
  struct Choice {
    std::vector<int32_t> input;
    std::vector<TokenScore> scores;
    std::unique_ptr<Sequence> sequence;
  };
  std::vector<Choice> choices;
  std::vector<size_t> shared(groups.size());
  std::vector<ScoreItem> prefixes, rests;

  // What a group shares runs in its first choice's sequence.
  for (size_t g = 0; g < groups.size(); ++g) {
    std::vector<std::vector<int32_t>> inputs;
    for (const LikelihoodRequest& request : groups[g]) inputs.push_back(Input(request));
    shared[g] = SharedLength(groups[g], inputs);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const int64_t length = static_cast<int64_t>(inputs[i].size());
      choices.push_back({std::move(inputs[i]),
                         std::vector<TokenScore>(groups[g][i].continuation.size()), Take(length)});
    }
  }
  for (size_t g = 0, next = 0; g < groups.size(); next += groups[g].size(), ++g) {
    if (shared[g] == 0) continue;
    const Choice& first = choices[next];
    prefixes.push_back({first.sequence.get(), std::span(first.input).first(shared[g]), {}, {}});
  }
  engine_.Score(prefixes);

  for (size_t g = 0, next = 0; g < groups.size(); ++g) {
    const Sequence& source = *choices[next].sequence;
    for (const LikelihoodRequest& request : groups[g]) {
      Choice& choice = choices[next++];
      choice.sequence->CopyPrefix(source, static_cast<int64_t>(shared[g]));
      rests.push_back({choice.sequence.get(), std::span(choice.input).subspan(shared[g]),
                       request.continuation, choice.scores});
    }
  }
  engine_.Score(rests);

  std::vector<std::vector<LikelihoodScore>> results(groups.size());
  for (size_t g = 0, next = 0; g < groups.size(); ++g) {
    for (size_t i = 0; i < groups[g].size(); ++i, ++next) {
      LikelihoodScore score{0, true};
      for (const TokenScore& token : choices[next].scores) {
        score.log_likelihood -= token.nll;
        score.greedy = score.greedy && token.greedy;
      }
      results[g].push_back(score);
      Return(std::move(choices[next].sequence));
    }
  }
  return results;
}

}  // namespace flatquant
