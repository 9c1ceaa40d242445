#pragma once

#include <CLI/App.hpp>
#include <cstdint>
#include <string>
#include <vector>

#include "flatquant/compress/quantize.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/model/config.h"

namespace flatquant {

// How to quantize, as a command line says it: what 'quantize' and 'compare' share.
struct QuantizeSettings {
  QuantizeOptions options;  // once Resolve was called
  std::string scheme = "w4a4kv4";
  std::string calib;
  int64_t seqlen = 0;       // of a window; 0: not given
  int64_t group_size = -1;  // of weights; -1: one scale per row
  bool direct_inverse = false;
  int lm_head_bits = 8;

  // Fills in what options says as text here, for a model. Errors: usage.seqlen.
  void Resolve(const ModelConfig& config);
};

// --preset. Comes before the options that a preset stands for: CLI11 applies them in
// this order, so that what is given beside a preset overrides it.
void AddPreset(CLI::App& command, QuantizeOptions* options);

// --scheme, --lm-head, --blocks.
void AddGrids(CLI::App& command, QuantizeSettings* settings);

// How weights become integers: --group-size, --weight-lr, --gptq-mse, --gptq-actorder,
// --flatten-kl, --flatten-rows.
void AddWeightTuning(CLI::App& command, QuantizeSettings* settings);

// --calib, --nsamples, --seqlen, --epochs, ..., --device.
void AddCalibration(CLI::App& command, QuantizeSettings* settings);

// The names of --weights. Throws std::out_of_range for another.
QuantizeOptions::Weights WeightsOf(const std::string& name);
std::vector<std::string> WeightsNames();

// The calibration windows of the settings. Errors: data.*.
TokenWindows ReadCalibration(const QuantizeSettings& settings, const std::string& model_directory,
                             const ModelConfig& config);

}  // namespace flatquant
