#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/packed/packed_model.h"

namespace flatquant {

// One prompt and how models continue it.
struct ReportSample {
  std::string prompt;
  std::string base;  // empty without a base model
  std::string quantized;
};

// What a report is made of. Only the model is needed; sections without data are
// left out.
struct ReportData {
  std::string title;  // the model's name
  const PackedModel* model = nullptr;
  // What commands wrote with --json, each an object; `where` names the file. Those
  // of 'quantize' and 'eval' are understood, all are embedded.
  struct Results {
    std::string where;
    nlohmann::json json;
  };
  std::vector<Results> results;
  std::vector<ReportSample> samples;
  bool plots = true;
};

// The page. Errors: report.bad_results for a results file that is not what such a
// command writes, naming it; DrawSvg's.
std::string ReportPage(const ReportData& data);

}  // namespace flatquant
