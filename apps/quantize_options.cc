// The options of 'quantize' and 'compare' that say how to quantize.

#include "apps/quantize_options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <map>
#include <string>
#include <vector>

#include "apps/options.h"
#include "flatquant/data/lazy_tokenizer.h"

namespace flatquant {
namespace {

const std::map<std::string, QuantizeOptions::Weights> kWeights = {
    {"rtn", QuantizeOptions::Weights::kRtn},
    {"gptq", QuantizeOptions::Weights::kGptq},
    {"learned", QuantizeOptions::Weights::kLearned}};

}  // namespace

void QuantizeSettings::Resolve(const ModelConfig& config) {
  options.scheme = Scheme::Parse(scheme);
  if (direct_inverse) options.parametrization = QuantizeOptions::Parametrization::kDirectInverse;
  if (!calib.empty()) options.calib = DataSpec::Parse(calib);
  options.seqlen = WindowLength(seqlen, config);
  options.group_size = std::max(group_size, int64_t{0});
}

QuantizeOptions::Weights WeightsOf(const std::string& name) { return kWeights.at(name); }

std::vector<std::string> WeightsNames() { return {"rtn", "gptq", "learned"}; }

TokenWindows ReadCalibration(const QuantizeSettings& settings, const std::string& model_directory,
                             const ModelConfig& config) {
  const LazyTokenizer tokenizer(model_directory);
  const QuantizeOptions& options = settings.options;
  return CalibrationWindows(*options.calib, tokenizer, options.seqlen, options.nsamples,
                            options.seed, config.vocab);
}

void AddPreset(CLI::App& command, QuantizeOptions* options) {
  command
      .add_option_function<std::string>(
          "--preset", [options](const std::string& name) { ApplyPreset(name, options); },
          "Settings to start from; options given beside it override it [paper]")
      ->type_name(fmt::format("{}", fmt::join(PresetNames(), "|")))
      ->check(OneOf(PresetNames()));
}

void AddGrids(CLI::App& command, QuantizeSettings* settings) {
  command
      .add_option("--scheme", settings->scheme,
                  "Bits of weights, activations, KV cache: w4a4kv4, w4a16, w8a8, w4a8k8v4")
      ->type_name("SCHEME")
      ->check(CheckedBy(Scheme::Parse))
      ->capture_default_str();
  command
      .add_option("--lm-head", settings->lm_head_bits,
                  "Bits of the output projection, and of the embedding where they are tied")
      ->type_name("4|8|16")
      ->check(OneOf(std::vector<int>{4, 8, 16}))
      ->capture_default_str();
  command
      .add_option("--blocks", settings->options.blocks, "Quantize only the first N blocks; 0: all")
      ->type_name("N")
      ->check(Bounds(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
}

void AddWeightTuning(CLI::App& command, QuantizeSettings* settings) {
  constexpr const char* kGroup = "Weights";
  QuantizeOptions* const options = &settings->options;
  command
      .add_option("--group-size", settings->group_size,
                  "A scale per row and group of N columns; -1: one per row")
      ->type_name("N")
      ->check(CLI::Validator(
          [](const std::string& text) {
            const bool is_row = text == "-1";
            return is_row ? std::string() : Bounds(int64_t{1}, int64_t{1} << 32)(text);
          },
          ""))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--weight-lr", options->weight_lr,
                  "Learning rate of learned corrections, in steps of the grid")
      ->type_name("X")
      ->check(CLI::Validator(CLI::PositiveNumber).description(""))
      ->capture_default_str()
      ->group(kGroup);
  command.add_flag("--gptq-mse", options->gptq_mse, "GPTQ: search the clip of each row or group")
      ->group(kGroup);
  command
      .add_flag("--gptq-actorder", options->gptq_act_order,
                "GPTQ: columns with the largest activations first")
      ->group(kGroup);
  command
      .add_option("--flatten-kl", options->flatten_kl,
                  "FlattenQuant: a site that diverges further at the scheme's width takes 8 bits")
      ->type_name("NATS")
      ->check(CLI::Validator(CLI::NonNegativeNumber).description(""))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_flag("--flatten-rows", options->flatten_rows,
                "FlattenQuant: a scale per row of a weight, not one for all")
      ->group(kGroup);
}

void AddCalibration(CLI::App& command, QuantizeSettings* settings) {
  QuantizeSettings& a = *settings;
  constexpr const char* kGroup = "Calibration";
  QuantizeOptions& o = a.options;
  command.add_option("--calib", a.calib, "Text to calibrate on, KIND:FILE as for 'eval'")
      ->type_name("SPEC")
      ->check(CheckedBy(DataSpec::Parse))
      ->group(kGroup);
  command.add_option("--nsamples", o.nsamples, "Windows of text")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 24))
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_option("--seqlen", a.seqlen,
                  "Tokens of a window [2048, or the model's context where that is smaller]")
      ->type_name("N")
      ->check(Bounds(int64_t{2}, int64_t{1} << 24))
      ->group(kGroup);
  command.add_option("--epochs", o.epochs, "Passes over the windows, per block")
      ->type_name("N")
      ->check(Bounds(0, 1 << 20))
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--batch", o.batch, "Windows per step")
      ->type_name("N")
      ->check(Bounds(1, 1 << 20))
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--lr", o.lr, "Learning rate of transforms and diagonals")
      ->type_name("X")
      ->check(CLI::Validator(CLI::PositiveNumber).description(""))
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--clip-lr", o.clip_lr, "Learning rate of clips")
      ->type_name("X")
      ->check(CLI::Validator(CLI::PositiveNumber).description(""))
      ->capture_default_str()
      ->group(kGroup);
  command.add_option("--seed", o.seed, "Of the windows and the initial transforms")
      ->type_name("N")
      ->capture_default_str()
      ->group(kGroup);
  static const std::map<std::string, QuantizeOptions::Stream> kStream = {
      {"fp", QuantizeOptions::Stream::kFullPrecision},
      {"quantized", QuantizeOptions::Stream::kQuantized}};
  command
      .add_option_function<std::string>(
          "--stream", [&o](const std::string& name) { o.stream = kStream.at(name); },
          "Train a block on the original's activations, or on the quantized blocks' [fp]")
      ->check(OneOf(kStream))
      ->type_name("fp|quantized")
      ->group(kGroup);
  static const std::map<std::string, QuantizeOptions::Amp> kAmp = {
      {"auto", QuantizeOptions::Amp::kAuto},
      {"bf16", QuantizeOptions::Amp::kBF16},
      {"f16", QuantizeOptions::Amp::kF16},
      {"f32", QuantizeOptions::Amp::kF32}};
  command
      .add_option_function<std::string>(
          "--amp", [&o](const std::string& name) { o.amp = kAmp.at(name); },
          "Matrix products in training; auto: bf16 where a CPU has it; on GPUs f16, or bf16 with "
          "--weights learned and for Qwen2 [auto]")
      ->check(OneOf(kAmp))
      ->type_name("auto|bf16|f16|f32")
      ->group(kGroup);
  command.add_option("--device", o.device, "Where to train: cpu, or cuda where LibTorch has it")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_flag("--direct-inverse", a.direct_inverse,
                "Learn matrices and invert them, instead of U diag(s) V^T by Cayley maps")
      ->group(kGroup);
  static const std::map<std::string, QuantizeOptions::Start> kStart = {
      {"orthogonal", QuantizeOptions::Start::kOrthogonal},
      {"cayley", QuantizeOptions::Start::kCayley}};
  command
      .add_option_function<std::string>(
          "--start", [&o](const std::string& name) { o.start = kStart.at(name); },
          "Start from random orthogonal matrices, or, as the original, from Cayley maps of random "
          "skew-symmetric ones [orthogonal]")
      ->check(OneOf(kStart))
      ->type_name("orthogonal|cayley")
      ->group(kGroup);
  command
      .add_flag("--per-linear-clips", o.per_linear_clips,
                "An activation clip per linear, as the original, not one per site")
      ->group(kGroup);
}

}  // namespace flatquant
