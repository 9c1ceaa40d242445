#include "flatquant/bench/result.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"

namespace flatquant::bench {
namespace {

using Row = std::vector<std::string>;

std::string Percent(double percent) { return percent < 0 ? "" : fmt::format("{:.1f}", percent); }

std::string Number(double value) {
  return value >= 100 ? fmt::format("{:.1f}", value) : fmt::format("{:.2f}", value);
}

nlohmann::ordered_json LimitsJson(const Limits& limits) {
  if (limits.gpu) {
    return {{"gpu_copy_bytes_per_s", limits.gpu->copy_bytes_per_s},
            {"gpu_int8_ops_per_s", limits.gpu->int8_ops_per_s},
            {"gpu_bf16_flops_per_s", limits.gpu->bf16_flops_per_s}};
  }
  const CpuLimits& cpu = limits.cpu;
  return {{"read_bytes_per_s", cpu.read_bytes_per_s},
          {"amx_int8_ops_per_s", cpu.amx_int8_ops_per_s},
          {"amx_bf16_ops_per_s", cpu.amx_bf16_ops_per_s},
          {"vnni_ops_per_s", cpu.vnni_ops_per_s},
          {"avx2_int8_ops_per_s", cpu.avx2_int8_ops_per_s},
          {"avx512_bf16_ops_per_s", cpu.avx512_bf16_ops_per_s},
          {"fma_flops_per_s", cpu.fma_flops_per_s}};
}

bool HasShares(const Run& run) {
  return std::any_of(run.results.begin(), run.results.end(),
                     [](const Result& result) { return !result.shares.empty(); });
}

// Characters of UTF-8 text: all bytes but those that continue one.
size_t Columns(const std::string& text) {
  return static_cast<size_t>(
      std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xc0) != 0x80; }));
}

// Aligned columns: the first ones are words, numbers stand to the right.
std::string Table(const std::vector<Row>& rows) {
  std::vector<size_t> widths(rows[0].size(), 0);
  for (const Row& row : rows) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], Columns(row[c]));
  }
  std::string text;
  for (size_t r = 0; r < rows.size(); ++r) {
    for (size_t c = 0; c < rows[r].size(); ++c) {
      const bool is_word = c < 2;
      text += is_word ? fmt::format("| {:<{}} ", rows[r][c], widths[c])
                      : fmt::format("| {:>{}} ", rows[r][c], widths[c]);
    }
    text += "|\n";
    if (r > 0) continue;
    for (size_t c = 0; c < widths.size(); ++c) {
      const std::string line(widths[c], '-');
      text += c < 2 ? "| " + line + " " : "| " + line + ":";
    }
    text += "|\n";
  }
  return text;
}

std::string LimitsLine(const Limits& limits) {
  if (limits.gpu) {
    return fmt::format("copy {:.0f} GB/s, INT8 wgmma {:.0f}, cuBLASLt bf16 {:.0f} Top/s",
                       limits.gpu->copy_bytes_per_s / 1e9, limits.gpu->int8_ops_per_s / 1e12,
                       limits.gpu->bf16_flops_per_s / 1e12);
  }
  const CpuLimits& cpu = limits.cpu;
  return fmt::format(
      "read {:.1f} GB/s, AMX-INT8 {:.2f}, AMX-BF16 {:.2f}, VNNI {:.2f}, AVX2-INT8 {:.2f}, "
      "AVX512-BF16 {:.2f}, FMA {:.2f} Top/s",
      cpu.read_bytes_per_s / 1e9, cpu.amx_int8_ops_per_s / 1e12, cpu.amx_bf16_ops_per_s / 1e12,
      cpu.vnni_ops_per_s / 1e12, cpu.avx2_int8_ops_per_s / 1e12, cpu.avx512_bf16_ops_per_s / 1e12,
      cpu.fma_flops_per_s / 1e12);
}

std::string Markdown(const Run& run) {
  const bool shares = HasShares(run);
  const bool memory = std::any_of(run.results.begin(), run.results.end(),
                                  [](const Result& result) { return result.memory > 0; });
  Row head = {"model", "variant", "size", "params",     "threads", "batch",
              "test",  "value",   "unit", "% of limit", "limit"};
  if (memory) head.push_back("GPU memory");
  if (shares) head.push_back("time");
  std::vector<Row> rows = {head};
  for (const Result& result : run.results) {
    Row row = {result.model,
               result.variant,
               result.bytes > 0 ? FormatBytes(result.bytes) : "",
               result.parameters > 0
                   ? fmt::format("{:.2f} B", static_cast<double>(result.parameters) / 1e9)
                   : "",
               std::to_string(run.threads),
               std::to_string(result.batch),
               result.test,
               fmt::format("{} ± {}", Number(result.value), Number(result.spread)),
               result.unit,
               Percent(result.percent_of_limit),
               result.limit};
    if (memory) row.push_back(FormatBytes(result.memory));
    if (shares) {
      std::string parts;
      for (const auto& [name, share] : result.shares) {
        parts += fmt::format("{}{} {:.1f}%", parts.empty() ? "" : ", ", name, 100 * share);
      }
      row.push_back(parts);
    }
    rows.push_back(std::move(row));
  }
  std::string text = Table(rows) + "\n";
  for (const Limits& limits : run.limits) text += "limits: " + LimitsLine(limits) + "\n";
  if (run.kernels.empty()) return text;  // a GPU's are chosen by their sizes alone
  text += "kernels:";
  for (size_t i = 0; i < run.kernels.size(); ++i) text += (i == 0 ? " " : ", ") + run.kernels[i];
  return text + "\n";
}

std::string Csv(const Run& run) {
  std::string text =
      "bench,model,variant,size_bytes,params,threads,batch,test,value,stddev,unit,"
      "percent_of_limit,limit\n";
  for (const Result& r : run.results) {
    text += fmt::format("{},{},{},{},{},{},{},{},{:.6g},{:.6g},{},{},{}\n", r.bench, r.model,
                        r.variant, r.bytes, r.parameters, run.threads, r.batch, r.test, r.value,
                        r.spread, r.unit, Percent(r.percent_of_limit), r.limit);
  }
  return text;
}

}  // namespace

double Median(std::vector<double> values) {
  FLATQUANT_CHECK(!values.empty());
  std::sort(values.begin(), values.end());
  const size_t half = values.size() / 2;
  return values.size() % 2 == 1 ? values[half] : (values[half - 1] + values[half]) / 2;
}

double Deviation(const std::vector<double>& values) {
  if (values.size() < 2) return 0;
  double mean = 0;
  for (double value : values) mean += value / static_cast<double>(values.size());
  double squares = 0;
  for (double value : values) squares += (value - mean) * (value - mean);
  return std::sqrt(squares / static_cast<double>(values.size() - 1));
}

nlohmann::ordered_json ToJson(const Run& run) {
  nlohmann::ordered_json results = nlohmann::ordered_json::array();
  for (const Result& result : run.results) {
    nlohmann::ordered_json one = {{"bench", result.bench},      {"variant", result.variant},
                                  {"test", result.test},        {"value", result.value},
                                  {"unit", result.unit},        {"stddev", result.spread},
                                  {"batch", result.batch},      {"model", result.model},
                                  {"size_bytes", result.bytes}, {"params", result.parameters}};
    if (result.memory > 0) one["memory_bytes"] = result.memory;
    if (result.percent_of_limit >= 0) {
      one["percent_of_limit"] = result.percent_of_limit;
      one["limit"] = result.limit;
    }
    for (const auto& [name, share] : result.shares) one["shares"][name] = share;
    results.push_back(std::move(one));
  }
  nlohmann::ordered_json limits = nlohmann::ordered_json::array();
  for (const Limits& measured : run.limits) limits.push_back(LimitsJson(measured));
  return {{"results", std::move(results)},
          {"threads", run.threads},
          {"limits", std::move(limits)},
          {"kernels", run.kernels}};
}

std::string FormatRun(const Run& run, Format format) {
  switch (format) {
    case Format::kMarkdown:
      return Markdown(run);
    case Format::kCsv:
      return Csv(run);
    case Format::kJson:
      break;
  }
  return ToJson(run).dump(2) + "\n";
}

}  // namespace flatquant::bench
