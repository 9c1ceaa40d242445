#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "flatquant/eval/statistics.h"

namespace flatquant {

// One figure of an evaluation.
struct EvalResult {
  // What the samples are and how they make the value.
  enum class Kind {
    kAccuracy,    // 0 or 1 per item; value is their mean
    kPerplexity,  // negative log-likelihoods; value is exp of their mean
    kAverage,     // of other figures' values; no samples
  };

  std::string name;    // of the data: "wikitext2", "piqa"
  std::string metric;  // "perplexity", "acc", "acc_norm"
  Kind kind = Kind::kPerplexity;
  double value = 0;
  double error = 0;     // standard error of the value; NaN where unknown
  int64_t items = 0;    // of a task; 0 of a text
  int64_t tokens = 0;   // tokens read
  int64_t windows = 0;  // of a text: windows they form
  int64_t seqlen = 0;   // tokens of a window
  double seconds = 0;   // of the run that gave this figure and others of its data
  std::vector<float> samples;

  // A figure out of its samples (at least one): value and error.
  static EvalResult FromSamples(std::string name, std::string metric, Kind kind,
                                std::vector<float> samples);
};

// The value and its error as text: "45.12 ± 1.02 %" for accuracies and averages of
// them, "27.0034 ± 0.1836" for perplexities; without the error where it is unknown.
std::string FormatValue(const EvalResult& result);

// One object per figure: name, metric, value, stderr, items, tokens, windows, seqlen,
// seconds. Values keep every digit, accuracies are fractions, an unknown error is null.
nlohmann::ordered_json ResultsJson(std::span<const EvalResult> results);

}  // namespace flatquant
