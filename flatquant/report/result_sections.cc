#include "flatquant/report/result_sections.h"

#include <fmt/format.h>

#include <cmath>

#include "flatquant/base/progress.h"
#include "flatquant/report/html.h"
#include "flatquant/report/section.h"

namespace flatquant {

using nlohmann::json;

std::string RecoverySection(const json& recovery) {
  HtmlTable table{{"", "metric", "base", "quantized", "difference", "±", "recovered"}, {}, 2};
  for (const json& row : recovery) {
    const bool percent = Text(row, "metric") != "perplexity";
    table.rows.push_back({Text(row, "name"), Text(row, "metric"),
                          Value(Number(row, "base"), percent), Value(Number(row, "value"), percent),
                          Value(Number(row, "difference"), percent),
                          Value(Number(row, "difference_stderr"), percent),
                          Value(Number(row, "recovered_percent") / 100, true)});
  }
  return SectionHead("Recovery", "What is left of the base model's figures; 100 % is all.") +
         table.Html();
}

std::string EvaluationSection(const json& results) {
  HtmlTable table{{"", "metric", "value", "±"}, {}, 2};
  for (const json& row : results) {
    const bool percent = Text(row, "metric") != "perplexity";
    table.rows.push_back({Text(row, "name"), Text(row, "metric"),
                          Value(Number(row, "value"), percent),
                          Value(Number(row, "stderr"), percent)});
  }
  return SectionHead("Evaluation", "With standard errors.") + table.Html();
}

std::string DivergenceSection(const json& kl) {
  HtmlTable table{{"", "mean KLD", "median", "99 %", "maximum", "same top", "PPL ratio"}, {}};
  for (const json& row : kl) {
    const json& kld = row.at("kld");
    table.rows.push_back({Text(row, "name"), fmt::format("{:.6f}", Number(kld, "value")),
                          fmt::format("{:.6f}", Number(kld, "median")),
                          fmt::format("{:.6f}", Number(kld.at("percentiles"), "99")),
                          fmt::format("{:.6f}", Number(kld, "maximum")),
                          Value(Number(row.at("same_top"), "value"), true),
                          fmt::format("{:.4f}", Number(row.at("ratio"), "value"))});
  }
  return SectionHead("Divergence from the base model", "Per token, in nats.") + table.Html();
}

std::vector<std::vector<std::string>> Timings(const json& contents) {
  std::vector<std::vector<std::string>> rows;
  const json& timings = contents.contains("timings") ? contents.at("timings") : contents;
  for (const auto& [member, name] :
       {std::pair{"calibration_seconds", "quantize: calibration"}, {"total_seconds", "quantize"}}) {
    if (timings.contains(member)) rows.push_back({name, Duration(Number(timings, member))});
  }
  if (contents.contains("peak_memory_bytes")) {
    rows.push_back(
        {"quantize: peak memory", FormatBytes(contents.at("peak_memory_bytes").get<uint64_t>())});
  }
  if (!contents.contains("results")) return rows;
  std::string last;  // the figures of one task share their time
  for (const json& row : contents.at("results")) {
    const std::string name = Text(row, "name");
    if (name != last) rows.push_back({"eval: " + name, Duration(Number(row, "seconds"))});
    last = name;
  }
  return rows;
}

}  // namespace flatquant
