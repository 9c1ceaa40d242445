#include "flatquant/eval/logit_rows.h"

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/eval/perplexity.h"

namespace flatquant {

EngineLogitRows::EngineLogitRows(const Engine& engine, const TextWindows& text)
    : engine_(engine), text_(text), sequence_(engine, text.seqlen) {
  CheckContext(text, engine.config().max_positions);
}

void EngineLogitRows::Begin(size_t window) {
  const TextWindows::Window& place = text_.windows[window];
  sequence_.Clear();
  left_ = text_.tokens(place);
  // A token's logits come from the position before it.
  const size_t unscored = static_cast<size_t>(place.length - place.scored - 1);
  if (unscored == 0) return;
  const ScoreItem item{&sequence_, left_.first(unscored), {}, {}};
  engine_.Score({&item, 1});
  left_ = left_.subspan(unscored);
}

std::span<const float> EngineLogitRows::Next(size_t count) {
  FLATQUANT_CHECK(count < left_.size());  // the last token only is predicted
  const std::span<const int32_t> tokens = left_.first(count);
  left_ = left_.subspan(count);
  return engine_.Forward(sequence_, tokens, Engine::Logits::kAll);
}

size_t RowsAtATime(int64_t vocab) {
  // 16 MB of logits: rows enough for products to read their weights seldom, few
  // enough for two models' logits to stay near the cores.
  constexpr int64_t kLogits = int64_t{1} << 22;
  return static_cast<size_t>(std::clamp<int64_t>(kLogits / vocab, 16, 512));
}

}  // namespace flatquant
