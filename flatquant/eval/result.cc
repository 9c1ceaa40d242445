#include "flatquant/eval/result.h"

#include <nlohmann/json.hpp>

namespace flatquant {

std::string ResultsJson(std::span<const EvalResult> results) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const EvalResult& result : results) {
    list.push_back({{"name", result.name},
                    {"metric", result.metric},
                    {"value", result.value},
                    {"tokens", result.tokens},
                    {"windows", result.windows},
                    {"seqlen", result.seqlen},
                    {"seconds", result.seconds}});
  }
  return nlohmann::ordered_json{{"results", std::move(list)}}.dump(
      -1, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace flatquant
