#include "apps/compare/table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/progress.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/linear_compute.h"

namespace flatquant {
namespace {

using Cells = std::vector<std::string>;

// "4", or "4.62" for a mean.
std::string BitsText(double bits) {
  return bits == std::round(bits) ? fmt::format("{:.0f}", bits) : fmt::format("{:.2f}", bits);
}

bool IsPercent(const EvalResult& result) { return result.kind != EvalResult::Kind::kPerplexity; }

// Columns of results that the table has: acc_norm instead of acc where a task has both,
// as the average takes them.
std::vector<size_t> ShownResults(const std::vector<EvalResult>& results) {
  std::vector<size_t> shown;
  for (size_t i = 0; i < results.size(); ++i) {
    const bool same_data = !shown.empty() && results[shown.back()].name == results[i].name &&
                           results[i].items > 0 && results[shown.back()].kind == results[i].kind;
    if (same_data && results[i].metric == "acc_norm") {
      shown.back() = i;
    } else {
      shown.push_back(i);
    }
  }
  return shown;
}

std::string TimeText(const TableRow& row) {
  if (!row.failure_name.empty()) return "failed: " + row.failure_name;
  if (std::isnan(row.quantize_seconds)) return "-";
  return (row.transforms_from.empty() ? "" : "+ ") + FormatDuration(row.quantize_seconds);
}

// Pads columns to equal widths in code points; numbers stand right.
std::string Align(const std::vector<Cells>& lines, size_t text_columns) {
  std::vector<size_t> widths(lines.front().size(), 0);
  for (const Cells& line : lines) {
    for (size_t i = 0; i < line.size(); ++i) widths[i] = std::max(widths[i], line[i].size());
  }
  std::string text;
  for (size_t at = 0; at < lines.size(); ++at) {
    for (size_t i = 0; i < widths.size(); ++i) {
      text += i < text_columns ? fmt::format("| {:<{}} ", lines[at][i], widths[i])
                               : fmt::format("| {:>{}} ", lines[at][i], widths[i]);
    }
    text += "|\n";
    if (at != 0) continue;
    for (size_t i = 0; i < widths.size(); ++i) {
      const std::string line(widths[i], '-');
      text += i < text_columns ? "| " + line + " " : "| " + line + ":";
    }
    text += "|\n";
  }
  return text;
}

std::string Markdown(const std::vector<TableRow>& rows) {
  const std::vector<size_t> shown = ShownResults(rows.front().results);
  Cells head = {"method", "weights", "W", "A", "K", "V", "INT4"};
  for (const size_t i : shown) {
    const EvalResult& result = rows.front().results[i];
    head.push_back(result.name + (IsPercent(result) ? " %" : ""));
  }
  head.insert(head.end(), {"size", "quantized in"});
  std::vector<Cells> lines = {head};
  bool shares = false;
  for (const TableRow& row : rows) {
    const ModelBits& bits = row.bits;
    Cells line = {row.method,
                  row.weights,
                  BitsText(bits.weights),
                  BitsText(bits.acts),
                  BitsText(bits.keys),
                  BitsText(bits.values),
                  fmt::format("{:.0f}%", 100 * bits.int4_share)};
    for (const size_t i : shown) {
      if (i >= row.results.size()) {
        line.emplace_back("-");
        continue;
      }
      const EvalResult& result = row.results[i];
      line.push_back(IsPercent(result) ? fmt::format("{:.2f}", 100 * result.value)
                                       : fmt::format("{:.3f}", result.value));
    }
    line.push_back(row.bytes == 0 ? "-" : FormatBytes(row.bytes));
    line.push_back(TimeText(row));
    lines.push_back(std::move(line));
    shares = shares || !row.transforms_from.empty();
  }
  std::string text = Align(lines, /*text_columns=*/2);
  if (shares) text += "\n+: with the transforms of the method's earlier row, beyond its time\n";
  return text;
}

std::string CsvText(const std::string& text) {
  if (text.find_first_of(",\"\n") == std::string::npos) return text;
  std::string quoted = "\"";
  for (const char c : text) quoted += c == '"' ? std::string("\"\"") : std::string(1, c);
  return quoted + "\"";
}

// Values with all their digits, as RFC 4180 writes tables.
std::string Csv(const std::vector<TableRow>& rows) {
  std::string text =
      "method,weights,weight_bits,act_bits,k_bits,v_bits,int4_share,bytes,quantize_seconds,failure";
  for (const EvalResult& result : rows.front().results) {
    text += "," + CsvText(result.name + " " + result.metric);
  }
  text += "\n";
  for (const TableRow& row : rows) {
    const ModelBits& bits = row.bits;
    text +=
        fmt::format("{},{},{},{},{},{},{},{},{},{}", CsvText(row.method), CsvText(row.weights),
                    bits.weights, bits.acts, bits.keys, bits.values, bits.int4_share, row.bytes,
                    std::isnan(row.quantize_seconds) ? "" : fmt::format("{}", row.quantize_seconds),
                    CsvText(row.failure));
    for (size_t i = 0; i < rows.front().results.size(); ++i) {
      text += i < row.results.size() ? fmt::format(",{}", row.results[i].value) : ",";
    }
    text += "\n";
  }
  return text;
}

}  // namespace

ModelBits BitsOf(const PackedModel& model) {
  ModelBits bits{0, 0, 0, 0, 0};
  double parameters = 0;
  for (const PackedBlock& block : model.blocks) {
    for (const Linear which : kLinears) {
      const LinearShape shape = ShapeOf(model.config, which);
      const double size = static_cast<double>(shape.rows) * static_cast<double>(shape.cols);
      parameters += size;
      bits.weights += size * block.linear(which).bits;
      bits.acts += size * block.site(SiteOf(which)).act_bits;
    }
    bits.keys += block.cache.k_bits;
    bits.values += block.cache.v_bits;
  }
  const double blocks = static_cast<double>(model.blocks.size());
  bits.weights /= parameters;
  bits.acts /= parameters;
  bits.int4_share = ComputeOf(model).int4_share();
  bits.keys /= blocks;
  bits.values /= blocks;
  return bits;
}

nlohmann::ordered_json TableJson(const std::vector<TableRow>& rows) {
  nlohmann::ordered_json list = nlohmann::ordered_json::array();
  for (const TableRow& row : rows) {
    nlohmann::ordered_json entry = {{"method", row.method},
                                    {"weights", row.weights},
                                    {"directory", row.directory},
                                    {"weight_bits", row.bits.weights},
                                    {"act_bits", row.bits.acts},
                                    {"k_bits", row.bits.keys},
                                    {"v_bits", row.bits.values},
                                    {"int4_share", row.bits.int4_share},
                                    {"bytes", row.bytes},
                                    {"quantize_seconds", row.quantize_seconds},
                                    {"transforms_from", row.transforms_from},
                                    {"results", ResultsJson(row.results)}};
    if (!row.failure.empty()) entry["failure"] = row.failure;
    list.push_back(std::move(entry));
  }
  return list;
}

std::string FormatTable(const std::vector<TableRow>& rows, TableFormat format) {
  switch (format) {
    case TableFormat::kMarkdown:
      return Markdown(rows);
    case TableFormat::kCsv:
      return Csv(rows);
    case TableFormat::kJson:
      break;
  }
  return TableJson(rows).dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

}  // namespace flatquant
