#include "flatquant/compress/report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "flatquant/compress/report_json.h"
#include "flatquant/model/network.h"

namespace flatquant {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

constexpr double kWorse = 0.01;    // relative; a probe of eight windows has less noise
constexpr double kDeviations = 5;  // one false alarm in some million normal blocks
const double kTwice = std::log(2.0);
constexpr size_t kFewestForSpread = 4;  // the median absolute deviation of fewer says nothing

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  if (values.size() % 2 == 1) return *middle;
  return (*middle + *std::max_element(values.begin(), middle)) / 2;
}

ordered_json ToJson(Site site, const SiteReport& report) {
  ordered_json clips = ordered_json::array();
  for (const Clip& clip : report.act_clips) clips.push_back({{"max", clip.max}, {"min", clip.min}});
  ordered_json out = {{"site", std::string(SiteName(site))},
                      {"act_clips", std::move(clips)},
                      {"weight_clip_mean", report.weight_clip_mean}};
  if (report.flatness) {
    out["flatness"] = {{"activation_before", report.flatness->activation_before},
                       {"activation_after", report.flatness->activation_after},
                       {"weight_before", report.flatness->weight_before},
                       {"weight_after", report.flatness->weight_after}};
  }
  return out;
}

SiteReport SiteReportFromJson(const json& from) {
  SiteReport report;
  for (const json& clip : from.at("act_clips")) {
    report.act_clips.push_back({clip.at("max").get<float>(), clip.at("min").get<float>()});
  }
  report.weight_clip_mean = from.at("weight_clip_mean").get<double>();
  if (const auto flatness = from.find("flatness"); flatness != from.end()) {
    report.flatness = SiteFlatnessReport{flatness->at("activation_before").get<double>(),
                                         flatness->at("activation_after").get<double>(),
                                         flatness->at("weight_before").get<double>(),
                                         flatness->at("weight_after").get<double>()};
  }
  return report;
}

}  // namespace

namespace compress {

ordered_json ToJson(const BlockReport& report) {
  ordered_json sites = ordered_json::array();
  for (const Site site : kSites) {
    sites.push_back(flatquant::ToJson(site, report.sites[static_cast<size_t>(site)]));
  }
  ordered_json out = {{"block", report.block},
                      {"loss_before", report.loss_before},
                      {"loss_after", report.loss_after},
                      {"seconds", report.seconds},
                      {"self_test_error", report.self_test_error}};
  if (!report.start_losses.empty()) {
    out["start_losses"] = report.start_losses;  // null where infinite
    out["chosen_start"] = report.chosen_start;
  }
  out["sites"] = std::move(sites);
  return out;
}

BlockReport BlockReportFromJson(const json& from) {
  BlockReport report;
  report.block = from.at("block").get<int64_t>();
  report.loss_before = from.at("loss_before").get<double>();
  report.loss_after = from.at("loss_after").get<double>();
  report.seconds = from.at("seconds").get<double>();
  report.self_test_error = from.at("self_test_error").get<double>();
  if (const auto losses = from.find("start_losses"); losses != from.end()) {
    for (const json& loss : *losses) {
      report.start_losses.push_back(loss.is_null() ? std::numeric_limits<double>::infinity()
                                                   : loss.get<double>());
    }
    report.chosen_start = from.at("chosen_start").get<int64_t>();
  }
  for (size_t i = 0; i < report.sites.size(); ++i) {
    report.sites[i] = SiteReportFromJson(from.at("sites").at(i));
  }
  return report;
}

}  // namespace compress

std::vector<int64_t> AbnormalBlocks(const std::vector<BlockReport>& blocks) {
  std::vector<std::pair<int64_t, double>> ratios;  // of the blocks that were trained
  std::vector<double> values;
  for (const BlockReport& block : blocks) {
    if (!(block.loss_before > 0 && block.loss_after > 0)) continue;
    ratios.emplace_back(block.block, std::log(block.loss_after / block.loss_before));
    values.push_back(ratios.back().second);
  }
  if (ratios.empty()) return {};
  const double median = Median(values);
  for (double& value : values) value = std::abs(value - median);
  const double bound = median + std::max(kDeviations * 1.4826 * Median(values), kTwice);
  std::vector<int64_t> abnormal;
  for (const auto& [block, ratio] : ratios) {
    const bool stands_out = ratios.size() >= kFewestForSpread && ratio > bound;
    if (ratio > kWorse || stands_out) abnormal.push_back(block);
  }
  return abnormal;
}

std::vector<std::string> Warnings(const QuantizeReport& report) {
  std::vector<std::string> warnings;
  for (const int64_t number : AbnormalBlocks(report.blocks)) {
    const auto block =
        std::find_if(report.blocks.begin(), report.blocks.end(),
                     [number](const BlockReport& each) { return each.block == number; });
    warnings.push_back(
        fmt::format("block {}: training changed its loss from {:.3e} to {:.3e}, out of line "
                    "with the other blocks; a lower --lr may help",
                    number, block->loss_before, block->loss_after));
  }
  for (const BlockReport& block : report.blocks) {
    const auto diverged = std::count_if(block.start_losses.begin(), block.start_losses.end(),
                                        [](double loss) { return std::isinf(loss); });
    if (diverged == 0) continue;
    warnings.push_back(fmt::format("block {}: {} of its {} starts diverged and {} left out",
                                   block.block, diverged, block.start_losses.size(),
                                   diverged == 1 ? "was" : "were"));
  }
  return warnings;
}

std::string ReportJson(const QuantizeReport& report,
                       const std::map<std::string, std::string>& provenance) {
  const std::vector<int64_t> abnormal = AbnormalBlocks(report.blocks);
  ordered_json blocks = ordered_json::array();
  for (const BlockReport& block : report.blocks) {
    ordered_json entry = compress::ToJson(block);
    entry["abnormal"] = std::find(abnormal.begin(), abnormal.end(), block.block) != abnormal.end();
    blocks.push_back(std::move(entry));
  }
  const ordered_json out = {{"format", "flatquant-report"},
                            {"version", 1},
                            {"options", report.options},
                            {"provenance", provenance},
                            {"self_test_error", report.self_test_error},
                            {"timings",
                             {{"calibration_seconds", report.calibration_seconds},
                              {"total_seconds", report.total_seconds}}},
                            {"peak_memory_bytes", report.peak_memory_bytes},
                            {"resumed_blocks", report.resumed_blocks},
                            {"blocks", std::move(blocks)},
                            {"warnings", Warnings(report)}};
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace flatquant
