#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "flatquant/data/token_windows.h"
#include "flatquant/model/source_model.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/scheme.h"

// The compression half's public face: free of LibTorch, so that apps can
// include it.
namespace flatquant {

struct QuantizeOptions {
  std::string method = "flatquant";  // see MethodNames()
  Scheme scheme;
  // Calibration.
  std::optional<DataSpec> calib;
  int64_t nsamples = 128;
  int64_t seqlen = 2048;
  int epochs = 15;
  int batch = 4;
  double lr = 5e-3;       // transforms and diagonals
  double clip_lr = 5e-2;  // clips
  uint64_t seed = 0;
  // How the integer codes of the folded weights are chosen. kLearned trains a
  // correction of each weight with straight-through gradients before it is rounded:
  // together with the method's own training, or after a method that has none.
  enum class Weights { kRtn, kGptq, kLearned };
  Weights weights = Weights::kRtn;
  double weight_lr = 1e-2;      // corrections, in steps of a row's grid per update
  bool gptq_mse = false;        // search each row's clip
  bool gptq_act_order = false;  // columns in the order of their activations' size
  // What enters a block in training: the original network's activations, so that
  // blocks are independent, or those of the quantized blocks before it, so that each
  // makes up for errors of the ones before. The target is the original's output in
  // both. GPTQ always sees the quantized ones.
  enum class Stream { kFullPrecision, kQuantized };
  Stream stream = Stream::kFullPrecision;
  enum class Parametrization { kSvdCayley, kDirectInverse };
  Parametrization parametrization = Parametrization::kSvdCayley;
  bool per_linear_clips = false;  // the original's layout; ours shares one per site
  enum class Amp { kAuto, kBF16, kF32 };
  Amp amp = Amp::kAuto;  // kAuto: bf16 matrix products where the CPU has them
  int threads = 0;       // 0: every usable core
  // Where calibration computes: "cpu", or what this LibTorch has ("cuda", "cuda:1").
  std::string device = "cpu";
  // Learned matrices to use instead of training (the original's flat_matrices.pth).
  std::optional<std::filesystem::path> transforms;
  // Only the first blocks are quantized, the rest stay (0: all); for experiments.
  int64_t blocks = 0;

  // Weights that are not quantized have no codes to choose.
  bool LearnsWeights() const { return weights == Weights::kLearned && scheme.weight_bits < 16; }
  bool UsesGptq() const { return weights == Weights::kGptq && scheme.weight_bits < 16; }
};

struct BlockReport {
  int64_t block = 0;
  double loss_before = 0;  // MSE of the block's output, initial transforms
  double loss_after = 0;   // the same after training
  double seconds = 0;
};

struct QuantizeReport {
  std::vector<BlockReport> blocks;
  double self_test_error = 0;  // folded, quantizers off: largest relative output error
  double calibration_seconds = 0;
  double total_seconds = 0;
};

// The registered methods, in display order.
std::vector<std::string> MethodNames();

// Named sets of options; docs/quality.md measures them.
//   paper  what the FlatQuant paper does: the defaults above
//   fast   learned weights on the quantized stream, a few epochs
//   best   the same for longer
std::vector<std::string> PresetNames();

// Sets the options that a preset stands for, the rest stay. Errors:
// quantize.unknown_preset.
void ApplyPreset(const std::string& name, QuantizeOptions* options);

// Quantizes in memory; WritePackedModel writes the result. Prints progress and
// the self-test. report may be null. Errors: quantize.unknown_method,
// quantize.needs_calibration, quantize.bad_option, quantize.bad_device,
// quantize.self_test (folding changed the network: nothing must be written),
// calibration.diverged, gptq.singular, transforms.* for a bad --transforms file, data.*.
PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     QuantizeReport* report);

// The same with calibration windows that the caller already has; options.calib,
// nsamples and seqlen are not looked at.
PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     const TokenWindows& calibration, QuantizeReport* report);

}  // namespace flatquant
