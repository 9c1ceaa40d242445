#include "flatquant/eval/recovery.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "flatquant/base/error.h"
#include "flatquant/eval/task_evaluation.h"

namespace flatquant {
namespace {

// exp(a) - exp(b): the variance of a difference, errors propagated to first order.
double PerplexityDifferenceError(const EvalResult& base, const EvalResult& result) {
  const double covariance = CovarianceOfMeans(result.samples, base.samples);
  const double variance = result.error * result.error + base.error * base.error -
                          2 * result.value * base.value * covariance;
  return std::sqrt(std::max(variance, 0.0));
}

RecoveryRow Row(const EvalResult& base, const EvalResult& result) {
  const bool lower_is_better = result.kind == EvalResult::Kind::kPerplexity;
  RecoveryRow row{result.name, result.metric, result.kind, base.value, result.value};
  row.difference = result.value - base.value;
  const double whole = lower_is_better ? result.value : base.value;
  const double part = lower_is_better ? base.value : result.value;
  row.recovered = whole > 0 ? 100 * part / whole : std::numeric_limits<double>::quiet_NaN();
  switch (result.kind) {
    case EvalResult::Kind::kPerplexity:
      row.error = PerplexityDifferenceError(base, result);
      break;
    case EvalResult::Kind::kAccuracy:
      row.error = MeanDifference(result.samples, base.samples).error;
      break;
    case EvalResult::Kind::kAverage:
      break;  // out of the rows that it is of, below
  }
  return row;
}

}  // namespace

std::vector<RecoveryRow> Recover(std::span<const EvalResult> base,
                                 std::span<const EvalResult> results) {
  FLATQUANT_CHECK(base.size() == results.size());
  std::vector<RecoveryRow> rows;
  for (size_t i = 0; i < results.size(); ++i) {
    FLATQUANT_CHECK(base[i].name == results[i].name && base[i].metric == results[i].metric);
    rows.push_back(Row(base[i], results[i]));
    if (results[i].kind != EvalResult::Kind::kAverage) continue;
    const std::vector<size_t> averaged = AveragedResults(results.first(i));
    double variance = 0;
    for (size_t j : averaged) variance += rows[j].error * rows[j].error;
    rows.back().error = std::sqrt(variance) / static_cast<double>(averaged.size());
  }
  return rows;
}

std::string FormatRecovery(std::span<const RecoveryRow> rows) {
  std::string text = fmt::format("{:<16} {:<10} {:>10} {:>10} {:>20} {:>10}\n", "", "metric",
                                 "base", "quantized", "difference", "recovered");
  for (const RecoveryRow& row : rows) {
    const bool percent = row.kind != EvalResult::Kind::kPerplexity;
    const double scale = percent ? 100 : 1;
    const int digits = percent ? 2 : 4;
    std::string difference = fmt::format("{:+.{}f}", scale * row.difference, digits);
    if (std::isfinite(row.error)) {
      difference += fmt::format(" ± {:.{}f}", scale * row.error, digits);
    }
    // "±" has two bytes but one column, which fmt counts right.
    text +=
        fmt::format("{:<16} {:<10} {:>10.{}f} {:>10.{}f} {:>20} {:>8.2f} %\n", row.name, row.metric,
                    scale * row.base, digits, scale * row.value, digits, difference, row.recovered);
  }
  return text;
}

nlohmann::ordered_json RecoveryJson(std::span<const RecoveryRow> rows) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const RecoveryRow& row : rows) {
    list.push_back({{"name", row.name},
                    {"metric", row.metric},
                    {"base", row.base},
                    {"value", row.value},
                    {"difference", row.difference},
                    {"difference_stderr", row.error},
                    {"recovered_percent", row.recovered}});
  }
  return list;
}

}  // namespace flatquant
