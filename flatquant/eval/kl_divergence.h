#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "flatquant/eval/logit_rows.h"
#include "flatquant/eval/statistics.h"
#include "flatquant/eval/text_windows.h"

namespace flatquant {

// How a model's predictions differ from a base model's at one token.
struct TokenDivergence {
  float kld = 0;          // sum over the vocabulary of p_base (log p_base - log p), nats
  float nll = 0;          // of the token that follows, nats
  float base_nll = 0;     // likewise
  bool same_top = false;  // whether both find the same token likeliest
};

// Compares two rows of logits, each given up to a constant; target follows.
TokenDivergence CompareLogits(std::span<const float> base, std::span<const float> logits,
                              int32_t target);

// A sample's distribution. All of a sample that is empty are NaN.
struct Distribution {
  Estimate mean;
  double minimum = 0, maximum = 0, median = 0;
  // At 0.1, 1, 5, 10, 25, 75, 90, 95, 99, 99.9 percent.
  std::vector<double> percentiles;
};

// The statistics that llama-perplexity --kl-divergence prints.
struct KlStatistics {
  std::string name;  // of the data
  int64_t tokens = 0;
  Estimate perplexity, base_perplexity;
  double correlation = 0;    // of ln PPL(Q) and ln PPL(base)
  Estimate log_ratio;        // ln(PPL(Q) / PPL(base))
  Estimate ratio;            // PPL(Q) / PPL(base)
  Estimate difference;       // PPL(Q) - PPL(base)
  Distribution kld;          // nats
  Distribution probability;  // p(Q) - p(base) of the token that follows, fractions
  Estimate rms_probability;  // root of its mean square
  Estimate same_top;         // fraction of tokens
};

// tokens: at least one.
KlStatistics Summarize(std::string name, std::span<const TokenDivergence> tokens);

// Compares a model with its base at each scored token of a text, with progress on
// stderr. Errors: eval.vocabulary, eval.not_finite; those of the rows.
std::vector<TokenDivergence> Diverge(const TextWindows& text, LogitRows& base, LogitRows& rows,
                                     ThreadPool& pool);

// Three blocks of lines, with llama-perplexity's names and units.
std::string FormatKl(const KlStatistics& statistics);
nlohmann::ordered_json KlJson(const KlStatistics& statistics);

}  // namespace flatquant
