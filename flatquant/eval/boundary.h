#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {

// Whether a text starts with BOS, as lm-evaluation-harness's add_bos_token says.
enum class BosRule {
  kTokenizer,  // as the tokenizer itself does (None, the harness's default since 0.4.10)
  kNever,      // False, its default before, and what the FlatQuant paper was measured with
  kAlways,     // True
};

// A continuation's tokens and those before them, as a model reads both.
struct LikelihoodRequest {
  std::vector<int32_t> context;       // at least one
  std::vector<int32_t> continuation;  // at least one
};

// Splits tokens where lm-evaluation-harness does for causal Hugging Face models:
// white space at the context's end moves to the continuation; the tokens of context
// and continuation together are cut after as many as the context has alone. An empty
// context is BOS, or EOS where there is no BOS. where: the item, for messages.
// Errors: eval.empty_continuation where no token is left to score, eval.no_bos where
// a BOS is needed and the tokenizer has none.
LikelihoodRequest EncodePair(const Tokenizer& tokenizer, std::string_view context,
                             std::string_view continuation, BosRule bos, std::string_view where);

}  // namespace flatquant
