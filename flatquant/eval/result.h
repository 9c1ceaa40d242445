#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace flatquant {

// One figure of an evaluation.
struct EvalResult {
  std::string name;    // of the data: "wikitext2"
  std::string metric;  // "perplexity"
  double value = 0;
  int64_t tokens = 0;   // tokens read
  int64_t windows = 0;  // windows they form
  int64_t seqlen = 0;   // tokens of a window
  double seconds = 0;
};

// {"results":[{"name":...,"metric":...,"value":...,"tokens":...,"windows":...,
// "seqlen":...,"seconds":...}]} on one line; values keep every digit.
std::string ResultsJson(std::span<const EvalResult> results);

}  // namespace flatquant
