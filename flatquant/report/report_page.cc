#include "flatquant/report/report_page.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/packed/sizes.h"
#include "flatquant/report/html.h"
#include "flatquant/report/plot.h"

namespace flatquant {
namespace {

using nlohmann::json;

// A number that JSON may have as null, for one that is unknown.
double Number(const json& object, const char* member) {
  const json& value = object.at(member);
  return value.is_null() ? std::numeric_limits<double>::quiet_NaN() : value.get<double>();
}

std::string Text(const json& object, const char* member) {
  return object.at(member).get<std::string>();
}

std::string Section(const char* title, const char* remark) {
  return fmt::format("<h2>{}</h2>\n<p>{}</p>\n", title, remark);
}

std::string Figure(const ReportData& data, const LinePlot& plot, const char* caption) {
  if (!data.plots) return {};
  return fmt::format("<figure>{}<figcaption>{}</figcaption></figure>\n", DrawSvg(plot), caption);
}

std::string Provenance(const PackedModel& model) {
  HtmlTable table{{}, {{"scheme", model.scheme.Name()}}, 2};
  for (const auto& [name, value] : model.provenance) table.rows.push_back({name, value});
  table.rows.push_back(
      {"network", fmt::format("{} blocks, hidden {}, vocabulary {}", model.config.layers,
                              model.config.hidden, model.config.vocab)});
  return Section("Provenance", "How this model was made.") + table.Html();
}

std::string Sizes(const PackedModel& model) {
  const PackedSizes sizes = SizesOf(model);
  const HtmlTable table{
      {"", "bytes", ""},
      {{"quantized linears, their transforms and clips", FormatBytes(sizes.linear_bytes),
        fmt::format("{:.1f} % of bf16", 100 * sizes.linear_ratio())},
       {"linears at 16 bits", FormatBytes(sizes.float_linear_bytes), ""},
       {"embedding, norms, output projection", FormatBytes(sizes.other_bytes), ""},
       {"all", FormatBytes(sizes.total()), ""}}};
  return Section("Size", "Bytes of the tensors.") + table.Html();
}

// "27.0034", or "45.12 %" for what is a fraction.
std::string Value(double value, bool percent) {
  return percent ? fmt::format("{:.2f} %", 100 * value) : fmt::format("{:.4f}", value);
}

std::string Recovery(const json& rows) {
  HtmlTable table{{"", "metric", "base", "quantized", "difference", "±", "recovered"}, {}, 2};
  for (const json& row : rows) {
    const bool percent = Text(row, "metric") != "perplexity";
    table.rows.push_back({Text(row, "name"), Text(row, "metric"),
                          Value(Number(row, "base"), percent), Value(Number(row, "value"), percent),
                          Value(Number(row, "difference"), percent),
                          Value(Number(row, "difference_stderr"), percent),
                          fmt::format("{:.2f} %", Number(row, "recovered_percent"))});
  }
  return Section("Recovery", "What is left of the base model's figures; 100 % is all.") +
         table.Html();
}

std::string Figures(const json& results) {
  HtmlTable table{{"", "metric", "value", "±", "time"}, {}, 2};
  for (const json& row : results) {
    const bool percent = Text(row, "metric") != "perplexity";
    table.rows.push_back(
        {Text(row, "name"), Text(row, "metric"), Value(Number(row, "value"), percent),
         Value(Number(row, "stderr"), percent), FormatDuration(Number(row, "seconds"))});
  }
  return Section("Evaluation", "With standard errors, and the time that each took.") + table.Html();
}

std::string Divergence(const json& kl) {
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
  return Section("Divergence from the base model", "Per token, in nats.") + table.Html();
}

std::string Training(const ReportData& data, const json& quantize) {
  PlotLine before{"before", {}, {}}, after{"after", {}, {}};
  HtmlTable table{{"block", "loss before", "loss after", "time"}, {}};
  for (const json& block : quantize.at("blocks")) {
    const double index = Number(block, "block");
    before.x.push_back(index);
    before.y.push_back(Number(block, "loss_before"));
    after.x.push_back(index);
    after.y.push_back(Number(block, "loss_after"));
    table.rows.push_back({fmt::format("{}", index), fmt::format("{:.4g}", before.y.back()),
                          fmt::format("{:.4g}", after.y.back()),
                          FormatDuration(Number(block, "seconds"))});
  }
  std::string html = Section("Training", "Mean squared error of each block's output.");
  if (!before.x.empty()) {
    html += Figure(data, {"training", "block", "loss", true, {before, after}},
                   "Error of each block before and after its transforms were learned.");
    html += table.Html();
  }
  html +=
      HtmlTable{{},
                {{"calibration", FormatDuration(Number(quantize, "calibration_seconds"))},
                 {"all", FormatDuration(Number(quantize, "total_seconds"))},
                 {"self-test error", fmt::format("{:.3g}", Number(quantize, "self_test_error"))}}}
          .Html();
  return html;
}

// The mean of a block's clips of one kind: 1 leaves a token's whole range.
std::string Clips(const ReportData& data) {
  constexpr const char* kSites[] = {"attn_in", "attn_out", "mlp_in", "mlp_out"};
  LinePlot plot{"clips", "block", "factor of the largest value", false, {}};
  for (const char* site : kSites) plot.lines.push_back({site, {}, {}});
  plot.lines.push_back({"K", {}, {}});
  plot.lines.push_back({"V", {}, {}});
  const auto add = [](PlotLine& line, size_t block, double value) {
    line.x.push_back(static_cast<double>(block));
    line.y.push_back(value);
  };
  HtmlTable table{{"block", "attn_in", "attn_out", "mlp_in", "mlp_out", "K", "V"}, {}};
  for (size_t b = 0; b < data.model->blocks.size(); ++b) {
    const PackedBlock& block = data.model->blocks[b];
    std::vector<std::string> row = {std::to_string(b)};
    const auto cell = [&](size_t line, double value) {
      add(plot.lines[line], b, value);
      row.push_back(fmt::format("{:.3f}", value));
    };
    for (size_t s = 0; s < block.sites.size(); ++s) {
      double sum = 0;
      for (const Clip& clip : block.sites[s].clips) sum += clip.max;
      cell(s, sum / static_cast<double>(block.sites[s].clips.size()));
    }
    cell(4, block.cache.k_clip.max);
    cell(5, block.cache.v_clip.max);
    table.rows.push_back(std::move(row));
  }
  return Section("Clips",
                 "By how much a token's range is shrunk before it is quantized; "
                 "1.000 is not at all.") +
         Figure(data, plot, "Clip of each site's activations and of K and V, by block.") +
         table.Html();
}

std::string Samples(const std::vector<ReportSample>& samples) {
  std::string html = Section("Samples", "The likeliest continuation, token by token.");
  const auto column = [](const char* name, const ReportSample& sample, const std::string& text) {
    return fmt::format(
        "<div><b>{}</b><span class=\"sample\"><span class=\"prompt\">{}</span>{}</span></div>",
        name, EscapeHtml(sample.prompt), EscapeHtml(text));
  };
  for (const ReportSample& sample : samples) {
    html += "<div class=\"pair\">";
    if (!sample.base.empty()) html += column("base", sample, sample.base);
    html += column("quantized", sample, sample.quantized) + "</div><p></p>\n";
  }
  return html;
}

// The sections that one results file gives, in the page's order.
std::string ResultSections(const ReportData& data, const ReportData::Results& results) {
  try {
    const json& contents = results.json;
    std::string html;
    if (contents.contains("recovery")) html += Recovery(contents.at("recovery"));
    if (contents.contains("results")) html += Figures(contents.at("results"));
    if (contents.contains("kl")) html += Divergence(contents.at("kl"));
    if (contents.contains("blocks")) html += Training(data, contents);
    return html;
  } catch (const nlohmann::json::exception&) {
    throw Error("report.bad_results", results.where, "is not what a command writes with --json",
                "name files of 'flatquant quantize --json' and 'flatquant eval --json'");
  }
}

}  // namespace

std::string ReportPage(const ReportData& data) {
  FLATQUANT_CHECK(data.model != nullptr);
  std::string body = fmt::format("<h1>{}</h1>\n", EscapeHtml(data.title));
  body += Provenance(*data.model);
  json raw = {{"title", data.title},
              {"scheme", data.model->scheme.Name()},
              {"provenance", data.model->provenance}};
  for (const ReportData::Results& results : data.results) {
    body += ResultSections(data, results);
    raw["results"].push_back({{"file", results.where}, {"contents", results.json}});
  }
  body += Sizes(*data.model);
  body += Clips(data);
  if (!data.samples.empty()) body += Samples(data.samples);
  for (const ReportSample& sample : data.samples) {
    raw["samples"].push_back(
        {{"prompt", sample.prompt}, {"base", sample.base}, {"quantized", sample.quantized}});
  }
  return HtmlPage(data.title + ": FlatQuant report", body,
                  raw.dump(-1, ' ', false, json::error_handler_t::replace));
}

}  // namespace flatquant
