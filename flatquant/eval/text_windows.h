#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "flatquant/data/token_windows.h"

namespace flatquant {

// A text cut into pieces that fit a model, and which tokens of each are scored.
struct TextWindows {
  struct Window {
    int64_t begin = 0;   // in ids
    int64_t length = 0;  // tokens, at least 2
    int64_t scored = 0;  // the last ones, which are predicted from all before them; >= 1
  };

  std::string name;  // of the data: "wikitext2"
  std::vector<int32_t> ids;
  std::vector<Window> windows;
  int64_t seqlen = 0;  // the longest a window may be

  std::span<const int32_t> tokens(const Window& window) const {
    return std::span(ids).subspan(static_cast<size_t>(window.begin),
                                  static_cast<size_t>(window.length));
  }
  int64_t scored_tokens() const;

  // Identifies ids and windows.
  uint64_t Fingerprint() const;
};

// Windows of seqlen tokens by the data's rule (EvaluationWindows). stride 0, or
// seqlen: one after another, all tokens but the first of each scored. A smaller
// stride moves each window on by that many tokens, so that a token is predicted from
// at least seqlen - stride others (once the text is that long), and scores each
// token but the text's first exactly once; the text is the same. limit > 0 keeps the
// first windows. Errors: EvaluationWindows's; eval.stride for one above seqlen or
// for data that comes in rows.
TextWindows ReadTextWindows(const DataSpec& spec, const Tokenizer& tokenizer, int64_t seqlen,
                            int64_t stride, int64_t limit, int64_t vocab);

// The windows of `tokens` ids that ReadTextWindows makes, 0 < stride < seqlen.
std::vector<TextWindows::Window> StridedWindows(int64_t tokens, int64_t seqlen, int64_t stride);

}  // namespace flatquant
