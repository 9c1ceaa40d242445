#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "flatquant/compress/import_pth.h"
#include "flatquant/compress/job/job_directory.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/model/source_model.h"

namespace flatquant::compress {

// A run's options, checked, with everything that follows from them.
struct RunPlan {
  // windows: null without calibration (see UsesCalibration). The arguments outlive the
  // plan. Errors: quantize.*, transforms.*.
  RunPlan(const SourceModel& source, const QuantizeOptions& asked,
          const TokenWindows* calibration_windows);

  const SourceModel& model;
  const ModelConfig& config;
  const QuantizeOptions options;
  const TokenWindows* const windows;
  const std::unique_ptr<const Method> method;
  const at::Device device;
  std::optional<LearnedParameters> learned;  // instead of the method's choice
  int64_t blocks = 0;                        // how many are quantized; the rest stays
  Amp amp = Amp::kOff;                       // of matrix products in training
  // Whether a block needs what the quantized blocks before it produce.
  bool in_order = false;
  bool trains_weights_afterwards = false;  // the method leaves corrections to the run
  int64_t steps_per_block = 0;             // of training, for progress
};

// Errors: quantize.unknown_method, quantize.bad_option.
std::unique_ptr<const Method> FindMethod(const QuantizeOptions& options);

bool UsesCalibration(const Method& method, const QuantizeOptions& options);

// Where to compute: each process of a host takes a GPU of its own where --device names
// none. Errors: quantize.bad_device.
at::Device ParseDevice(const QuantizeOptions& options);

// What matrix products in training round to. Errors: quantize.bad_option for float16 on a CPU.
Amp AmpOf(const QuantizeOptions& options, const ModelConfig& config, const at::Device& device);

// Throws quantize.needs_calibration.
[[noreturn]] void ThrowNeedsCalibration(const QuantizeOptions& options);

// What the packed model says about where it came from.
std::map<std::string, std::string> Provenance(const RunPlan& plan);

// What decides the bytes of the plan's blocks.
JobSettings SettingsOf(const RunPlan& plan);

}  // namespace flatquant::compress
