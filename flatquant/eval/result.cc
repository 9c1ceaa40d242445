#include "flatquant/eval/result.h"

#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

namespace flatquant {

EvalResult EvalResult::FromSamples(std::string name, std::string metric, Kind kind,
                                   std::vector<float> samples) {
  const Estimate mean = MeanOf(samples);
  EvalResult result;
  result.name = std::move(name);
  result.metric = std::move(metric);
  result.kind = kind;
  result.samples = std::move(samples);
  if (kind == Kind::kPerplexity) {
    // d exp(x) = exp(x) dx
    result.value = std::exp(mean.mean);
    result.error = result.value * mean.error;
  } else {
    result.value = mean.mean;
    result.error = mean.error;
  }
  return result;
}

std::string FormatValue(const EvalResult& result) {
  const bool percent = result.kind != EvalResult::Kind::kPerplexity;
  const double scale = percent ? 100 : 1;
  const int digits = percent ? 2 : 4;
  const char* unit = percent ? " %" : "";
  char text[96];
  if (std::isfinite(result.error)) {
    std::snprintf(text, sizeof(text), "%.*f ± %.*f%s", digits, scale * result.value, digits,
                  scale * result.error, unit);
  } else {
    std::snprintf(text, sizeof(text), "%.*f%s", digits, scale * result.value, unit);
  }
  return text;
}

nlohmann::ordered_json ResultsJson(std::span<const EvalResult> results) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const EvalResult& result : results) {
    list.push_back({{"name", result.name},
                    {"metric", result.metric},
                    {"value", result.value},
                    {"stderr", result.error},
                    {"items", result.items},
                    {"tokens", result.tokens},
                    {"windows", result.windows},
                    {"seqlen", result.seqlen},
                    {"seconds", result.seconds}});
  }
  return list;
}

}  // namespace flatquant
