#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "flatquant/packed/packed_model.h"

// What is known of a run besides the model that it made.
namespace flatquant {

// How flat a site's channels are (compress/flatness.h), of the original network and
// behind its transforms.
struct SiteFlatnessReport {
  double activation_before = 0;
  double activation_after = 0;
  double weight_before = 0;
  double weight_after = 0;
};

struct SiteReport {
  std::vector<Clip> act_clips;  // one shared by the site's linears, or one per linear
  // Mean over the rows of the site's linears of the factors that shrink their ranges.
  double weight_clip_mean = 1;
  std::optional<SiteFlatnessReport> flatness;  // needs calibration data
};

using SiteReports = std::array<SiteReport, 4>;  // indexed by Site

struct BlockReport {
  int64_t block = 0;
  double loss_before = 0;  // MSE of the block's output, initial transforms
  double loss_after = 0;   // the same after training
  double seconds = 0;
  double self_test_error = 0;  // see QuantizeReport
  // Of several starts: what they were compared by (SelectionLoss), infinite for one that
  // diverged, and which was kept. Empty with one start.
  std::vector<double> start_losses;
  int64_t chosen_start = 0;
  SiteReports sites;
};

struct QuantizeReport {
  std::map<std::string, std::string> options;  // all that decides the model's bytes, by name
  std::vector<BlockReport> blocks;
  int64_t resumed_blocks = 0;      // of them, made by an interrupted run before this one
  double self_test_error = 0;      // folded, quantizers off: largest relative output error
  double calibration_seconds = 0;  // the sum over blocks, whichever run or process made them
  double total_seconds = 0;        // of this run
  uint64_t peak_memory_bytes = 0;  // resident, of this process
};

// The blocks, by number, whose loss stands out. Of blocks that were trained let
// r = log(loss_after / loss_before). A block is abnormal where training made its loss
// worse (r > 0.01), or where r lies above the median of all blocks by more than five
// robust standard deviations (1.4826 times the median absolute deviation) and by more
// than log 2: it kept twice as much of its loss as its neighbours. The second rule
// needs at least four blocks.
std::vector<int64_t> AbnormalBlocks(const std::vector<BlockReport>& blocks);

// Lines for people: abnormal blocks, starts that diverged.
std::vector<std::string> Warnings(const QuantizeReport& report);

// The text of report.json (docs/calibration.md gives its fields).
std::string ReportJson(const QuantizeReport& report,
                       const std::map<std::string, std::string>& provenance);

}  // namespace flatquant
