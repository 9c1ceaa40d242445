#include "flatquant/report/report_page.h"

#include <fmt/format.h>

#include <functional>

#include "flatquant/base/error.h"
#include "flatquant/report/flatness_figures.h"
#include "flatquant/report/html.h"
#include "flatquant/report/model_sections.h"
#include "flatquant/report/result_sections.h"
#include "flatquant/report/section.h"

namespace flatquant {
namespace {

using nlohmann::json;

std::string Samples(const std::vector<ReportSample>& samples) {
  if (samples.empty()) return {};
  std::string html = SectionHead("Samples", "The likeliest continuation, token by token.");
  const auto column = [](const char* name, const ReportSample& sample, const std::string& text) {
    return fmt::format(
        "<div><b>{}</b><span class=\"sample\"><span class=\"prompt\">{}</span>{}</span></div>",
        name, EscapeHtml(sample.prompt), EscapeHtml(text));
  };
  for (const ReportSample& sample : samples) {
    html += "<div class=\"pair\">";
    if (!sample.base.empty()) html += column("base", sample, sample.base);
    html += column("quantized", sample, sample.quantized) + "</div>\n";
  }
  return html;
}

bool IsFlatness(const json& contents) {
  return contents.value("format", json()) == kFlatnessFormat;
}

// What `make` makes of every results file that `has` says it is for.
std::string ForEach(const ReportData& data, const std::function<bool(const json&)>& has,
                    const std::function<std::string(const ReportData::Results&)>& make) {
  std::string html;
  for (const ReportData::Results& results : data.results) {
    try {
      if (has(results.json)) html += make(results);
    } catch (const json::exception&) {
      throw Error("report.bad_results", results.where, "is not what a command writes with --json",
                  "name files of 'flatquant quantize', 'eval' and 'flatness' --json");
    }
  }
  return html;
}

// The section of each file that has this member, made of it.
std::string OfMember(const ReportData& data, const char* member,
                     std::string (*make)(const json& value)) {
  return ForEach(
      data, [member](const json& contents) { return contents.contains(member); },
      [=](const ReportData::Results& results) { return make(results.json.at(member)); });
}

std::string TimingsSection(const ReportData& data) {
  HtmlTable table{{}, {}};
  ForEach(
      data, [](const json&) { return true; },
      [&](const ReportData::Results& results) -> std::string {
        for (auto& row : Timings(results.json)) table.rows.push_back(std::move(row));
        return {};
      });
  if (table.rows.empty()) return {};
  return SectionHead("Time and memory", "Of the commands that made and measured this model.") +
         table.Html();
}

json RawData(const ReportData& data) {
  json raw = {{"title", data.title},
              {"scheme", data.model->scheme.Name()},
              {"provenance", data.model->provenance}};
  for (const ReportData::Results& results : data.results) {
    raw["results"].push_back({{"file", results.where}, {"contents", results.json}});
  }
  for (const ReportSample& sample : data.samples) {
    raw["samples"].push_back(
        {{"prompt", sample.prompt}, {"base", sample.base}, {"quantized", sample.quantized}});
  }
  return raw;
}

}  // namespace

std::string ReportPage(const ReportData& data) {
  FLATQUANT_CHECK(data.model != nullptr);
  std::string body = fmt::format("<h1>{}</h1>\n", EscapeHtml(data.title));
  body += ProvenanceSection(*data.model);
  body += OfMember(data, "recovery", RecoverySection);
  body += OfMember(data, "results", EvaluationSection);
  body += OfMember(data, "kl", DivergenceSection);
  body += SizesSection(*data.model);
  body += TimingsSection(data);
  body += Samples(data.samples);
  body += ForEach(
      data, [](const json& contents) { return contents.contains("blocks"); },
      [&](const ReportData::Results& results) {
        return TrainingSection(results.json, data.plots);
      });
  body += ForEach(data, IsFlatness, [&](const ReportData::Results& results) {
    return FlatnessFigures::Parse(results.json, results.where).Html(data.plots);
  });
  body += ClipsSection(*data.model, data.plots);
  return HtmlPage(data.title + ": FlatQuant report", body,
                  RawData(data).dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace flatquant
