#include "flatquant/eval/perplexity.h"

#include <chrono>
#include <cmath>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"

namespace flatquant {
namespace {

// Writes the likelihoods of a window's scored tokens. Its last token, which predicts nothing, is
// not run, as beside a divergence (logit_rows.h): the same rows give the same bits.
void RunWindow(const Engine& engine, Sequence& sequence, std::span<const int32_t> tokens,
               std::span<float> nll) {
  sequence.Clear();
  std::vector<TokenScore> scores(nll.size());
  const ScoreItem item{&sequence, tokens.first(tokens.size() - 1), tokens.last(nll.size()), scores};
  engine.Score({&item, 1});
  for (size_t i = 0; i < nll.size(); ++i) nll[i] = scores[i].nll;
}

// The tokens that the first `windows` windows score.
size_t ScoredBefore(const TextWindows& text, uint64_t windows) {
  int64_t total = 0;
  for (uint64_t i = 0; i < windows; ++i) total += text.windows[i].scored;
  return static_cast<size_t>(total);
}

}  // namespace

void CheckContext(const TextWindows& text, int64_t max_positions) {
  if (text.seqlen <= max_positions) return;
  throw Error("eval.context", text.name,
              "windows of " + std::to_string(text.seqlen) +
                  " tokens do not fit the model's context of " + std::to_string(max_positions),
              "use a smaller --seqlen");
}

EvalResult Perplexity(const Engine& engine, const TextWindows& text, PerplexityState* state,
                      uint64_t key) {
  FLATQUANT_CHECK(!text.windows.empty());
  CheckContext(text, engine.config().max_positions);
  const auto start = std::chrono::steady_clock::now();
  PerplexityState::Run unkept;
  PerplexityState::Run& run = state != nullptr ? state->run(key) : unkept;
  if (run.windows > text.windows.size() || run.nll.size() != ScoredBefore(text, run.windows)) {
    throw Error("eval.bad_state", text.name, "the saved run does not fit these windows",
                "delete the --resume file to start again");
  }
  Progress progress(text.name, text.windows.size());
  double sum = 0;
  for (float value : run.nll) sum += value;
  progress.Advance(run.windows);
  Sequence sequence(engine, text.seqlen);
  while (run.windows < text.windows.size()) {
    const TextWindows::Window& window = text.windows[run.windows];
    std::vector<float> nll(static_cast<size_t>(window.scored));
    RunWindow(engine, sequence, text.tokens(window), nll);
    for (float value : nll) sum += value;
    if (!std::isfinite(sum)) {
      throw Error("eval.not_finite", text.name + " window " + std::to_string(run.windows),
                  "the model's output is not finite",
                  "its weights may be damaged or overflow; try --precision f32");
    }
    run.nll.insert(run.nll.end(), nll.begin(), nll.end());
    ++run.windows;
    if (state != nullptr) state->Checkpoint();
    char note[48];
    std::snprintf(note, sizeof(note), "perplexity %.3f",
                  std::exp(sum / static_cast<double>(run.nll.size())));
    progress.Advance(1, note);
  }
  if (state != nullptr) state->Save();
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  return PerplexityOf(text, run.nll, elapsed.count());
}

EvalResult PerplexityOf(const TextWindows& text, std::vector<float> nll, double seconds) {
  EvalResult result = EvalResult::FromSamples(text.name, "perplexity",
                                              EvalResult::Kind::kPerplexity, std::move(nll));
  for (const TextWindows::Window& window : text.windows) result.tokens += window.length;
  result.windows = static_cast<int64_t>(text.windows.size());
  result.seqlen = text.seqlen;
  result.seconds = seconds;
  return result;
}

}  // namespace flatquant
