#pragma once

#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <vector>

#include "flatquant/eval/result.h"

namespace flatquant {

// One figure of a model beside its base model's.
struct RecoveryRow {
  std::string name, metric;
  EvalResult::Kind kind = EvalResult::Kind::kPerplexity;
  double base = 0;
  double value = 0;
  double difference = 0;  // value - base
  // Standard error of the difference, the samples of both being paired: far below
  // what the two errors suggest, since both models stumble over the same items.
  double error = 0;
  // What is left, percent: value / base, of perplexities base / value, so that 100
  // means nothing lost and less means worse. NaN for a base of 0.
  double recovered = 0;
};

// base and results: of the same evaluation, figure by figure.
std::vector<RecoveryRow> Recover(std::span<const EvalResult> base,
                                 std::span<const EvalResult> results);

// A table with a line per figure; accuracies in percent.
std::string FormatRecovery(std::span<const RecoveryRow> rows);
nlohmann::ordered_json RecoveryJson(std::span<const RecoveryRow> rows);

}  // namespace flatquant
