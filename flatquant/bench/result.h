#pragma once

#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/kernels/limits/cuda_limits.h"
#include "flatquant/kernels/limits/limits.h"

namespace flatquant::bench {

// What a benchmark's machine can do: its processors, or the GPU that it ran on.
struct Limits {
  CpuLimits cpu;
  std::optional<CudaLimits> gpu;
};

// One line of a benchmark's table.
struct Result {
  std::string bench;    // "e2e", "layer", ...
  std::string variant;  // "flatquant", or a kernel's name
  std::string test;     // "pp512", "tg128 @ d2048", "4096x11008 m1"
  int64_t batch = 1;
  double value = 0;   // median of the samples
  double spread = 0;  // their standard deviation
  std::string unit;   // "tokens/s", "us"
  // value's share of what the machine can do; < 0 where there is no such limit.
  double percent_of_limit = -1;
  std::string limit;  // which one: "memory", "AMX-INT8", ...
  std::string model;
  uint64_t bytes = 0;   // of weights, as the engine holds them
  uint64_t memory = 0;  // of the GPU, all that the engine took; 0 on the CPU
  uint64_t parameters = 0;
  std::vector<std::pair<std::string, double>> shares;  // of the time, with --profile
};

struct Run {
  std::vector<Result> results;
  std::vector<Limits> limits;  // measured before and after each group of results
  int threads = 1;
  std::vector<std::string> kernels;  // "GemmInt X86AmxInt8", ...
};

enum class Format { kMarkdown, kCsv, kJson };

// The table, in llama-bench's manner, with what was measured of the machine below
// it; or the whole run as CSV or JSON.
std::string FormatRun(const Run& run, Format format);

nlohmann::ordered_json ToJson(const Run& run);

// Of at least one number.
double Median(std::vector<double> values);
double Deviation(const std::vector<double>& values);  // standard; 0 for a single one

}  // namespace flatquant::bench
