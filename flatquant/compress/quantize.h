#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/compress/job/job_options.h"
#include "flatquant/compress/report.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/model/source_model.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/scheme.h"

// The compression half's public face: free of LibTorch, so that apps can
// include it.
namespace flatquant {

// An option that changes the bytes of a block has a line in SettingsOf (run_plan.cc).
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
  // Columns of a weight that share a scale; 0: one scale per row, as where a group is no
  // smaller than a row. For kRtn and kGptq.
  int64_t group_size = 0;
  double weight_lr = 1e-2;      // corrections, in steps of a row's grid per update
  bool gptq_mse = false;        // search each row's or group's clip
  bool gptq_act_order = false;  // columns in the order of their activations' size
  // FlattenQuant: a site whose divergence at the scheme's width is above this, in nats,
  // takes 8 bits. The default: docs/quality.md.
  double flatten_kl = 1.5e-3;
  bool flatten_rows = false;  // FlattenQuant: a scale per row of a weight, not one for all
  // What enters a block in training: the original network's activations, so that
  // blocks are independent, or those of the quantized blocks before it, so that each
  // makes up for errors of the ones before. The target is the original's output in
  // both. GPTQ always sees the quantized ones.
  enum class Stream { kFullPrecision, kQuantized };
  Stream stream = Stream::kFullPrecision;
  enum class Parametrization { kSvdCayley, kDirectInverse };
  Parametrization parametrization = Parametrization::kSvdCayley;
  // Where FlatQuant's orthogonal matrices start: uniformly random, or, as the original's, as
  // Cayley maps of random skew-symmetric matrices, which lie nearer to the identity. For
  // kSvdCayley.
  enum class Start { kOrthogonal, kCayley };
  Start start = Start::kOrthogonal;
  // FlatQuant: random starts that each block is trained from, 1 to kMostRestarts; the one of least
  // error is kept.
  int restarts = 1;
  static constexpr int kMostRestarts = 16;
  bool per_linear_clips = false;  // the original's layout; ours shares one per site
  // Matrix products in training. kF16: on GPUs. kAuto: bf16 where a CPU has it; on a GPU f16, as
  // the original, but bf16 for Qwen2 and where weights are learned, too.
  enum class Amp { kAuto, kBF16, kF16, kF32 };
  Amp amp = Amp::kAuto;
  int threads = 0;  // 0: every usable core
  // Where calibration computes: "cpu", or what this LibTorch has ("cuda", "cuda:1").
  std::string device = "cpu";
  // Learned matrices to use instead of training (the original's flat_matrices.pth).
  std::optional<std::filesystem::path> transforms;
  // Only the first blocks are quantized, the rest stay (0: all); for experiments.
  int64_t blocks = 0;
  // Bytes that the calibration windows' activations may take in memory; beyond it they
  // go to unnamed files in the job's folder. 0: no limit.
  uint64_t calib_memory = 0;
  // Where finished blocks are kept; without, they live in memory alone.
  std::optional<JobOptions> job;

  // Weights that are not quantized have no codes to choose.
  bool LearnsWeights() const { return weights == Weights::kLearned && scheme.weight_bits < 16; }
  bool UsesGptq() const { return weights == Weights::kGptq && scheme.weight_bits < 16; }
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

// Quantizes; WritePackedModel writes the result. Prints progress and the self-test.
// report may be null.
//
// With options.job the blocks that an interrupted run of the same settings finished are
// taken over, those of this run are kept as they are finished, and the result maps them:
// it is valid until RemoveJob. Where several processes share the work, the first one's
// result is the model, the others' has no blocks.
//
// Errors: quantize.unknown_method, quantize.needs_calibration, quantize.bad_option,
// quantize.bad_device, quantize.needs_order (several processes, but each block needs the
// one before), quantize.self_test (folding changed the network: nothing must be
// written), calibration.diverged, gptq.singular, transforms.* for a bad --transforms
// file, data.*, job.* (job_directory.h).
PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     QuantizeReport* report);

// The same with calibration windows that the caller already has; options.calib,
// nsamples and seqlen are not looked at.
PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     const TokenWindows& calibration, QuantizeReport* report);

// What decides the bytes of Quantize's result: names, as people know them ("--lr",
// "calibration data"), and values. calibration: the windows, null without. Errors: those
// of Quantize that show before any work.
std::vector<std::pair<std::string, std::string>> QuantizeDecisions(const SourceModel& model,
                                                                   const QuantizeOptions& options,
                                                                   const TokenWindows* calibration);

}  // namespace flatquant
