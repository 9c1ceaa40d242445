// flatquant quantize: a Hugging Face model becomes a packed one.

#include "flatquant/compress/quantize.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/model_files.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/data/lazy_tokenizer.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

struct QuantizeArguments {
  std::string directory;
  std::string out;
  std::string scheme = "w4a4kv4";
  std::string calib;
  std::string transforms;
  int64_t seqlen = 0;
  bool direct_inverse = false;
  int lm_head_bits = 8;
  QuantizeOptions options;
  std::string json;
};

// What can go wrong later because of the command line or the folders goes wrong
// here, before any long work.
void CheckPaths(const QuantizeArguments& arguments) {
  CheckModelDirectory(arguments.directory);
  if (IsPackedDirectory(arguments.directory)) {
    throw Error("quantize.already_packed", arguments.directory, "is quantized already",
                "start from the full-precision model");
  }
  CheckPackedDestination(arguments.out);
  CheckCanCreate(arguments.out);
  if (!arguments.transforms.empty() && ::access(arguments.transforms.c_str(), R_OK) != 0) {
    throw Error("file.open", arguments.transforms, "cannot be read", "check --transforms");
  }
}

nlohmann::ordered_json ToJson(const QuantizeArguments& arguments, const PackedModel& packed,
                              const QuantizeReport& report, uint64_t source_bytes,
                              uint64_t packed_bytes) {
  nlohmann::ordered_json blocks = nlohmann::ordered_json::array();
  for (const BlockReport& block : report.blocks) {
    blocks.push_back({{"block", block.block},
                      {"loss_before", block.loss_before},
                      {"loss_after", block.loss_after},
                      {"seconds", block.seconds}});
  }
  return {{"output", arguments.out},
          {"method", arguments.options.method},
          {"scheme", packed.scheme.Name()},
          {"source_bytes", source_bytes},
          {"packed_bytes", packed_bytes},
          {"self_test_error", report.self_test_error},
          {"calibration_seconds", report.calibration_seconds},
          {"total_seconds", report.total_seconds},
          {"blocks", std::move(blocks)},
          {"provenance", packed.provenance}};
}

void Run(const QuantizeArguments& arguments) {
  const Report report(arguments.json);
  CheckPaths(arguments);
  QuantizeOptions options = arguments.options;
  options.scheme = Scheme::Parse(arguments.scheme);
  if (arguments.direct_inverse) {
    options.parametrization = QuantizeOptions::Parametrization::kDirectInverse;
  }
  if (!arguments.transforms.empty()) options.transforms = arguments.transforms;
  const SourceModel model = SourceModel::Open(arguments.directory);
  options.seqlen = WindowLength(arguments.seqlen, model.config());

  QuantizeReport quantized;
  const auto quantize = [&]() -> PackedModel {
    if (arguments.calib.empty()) return Quantize(model, options, &quantized);
    options.calib = DataSpec::Parse(arguments.calib);
    const LazyTokenizer tokenizer(arguments.directory);
    const TokenWindows windows =
        CalibrationWindows(*options.calib, tokenizer, options.seqlen, options.nsamples,
                           options.seed, model.config().vocab);
    return Quantize(model, options, windows, &quantized);
  };
  PackedModel packed = quantize();
  if (arguments.lm_head_bits < 16) {
    QuantizeHead(arguments.lm_head_bits, kHeadActBits, &packed);
  }
  WritePackedModel(packed, arguments.directory, arguments.out);

  const uint64_t source_bytes = WeightFileBytes(arguments.directory);
  const uint64_t packed_bytes = WeightFileBytes(arguments.out);
  report.Line("{} -> {}: {} of weights became {} ({:.1f}%), {} {}, in {}", arguments.directory,
              arguments.out, FormatBytes(source_bytes), FormatBytes(packed_bytes),
              100.0 * static_cast<double>(packed_bytes) / static_cast<double>(source_bytes),
              options.method, packed.scheme.Name(), FormatDuration(quantized.total_seconds));
  report.Line("next: flatquant generate {} -p \"Once upon a time\"", arguments.out);
  report.Line("      flatquant eval {} --ppl SPEC", arguments.out);
  if (report.wants_json()) {
    report.WriteJson(ToJson(arguments, packed, quantized, source_bytes, packed_bytes)
                         .dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  }
}

void AddCalibrationOptions(CLI::App& command, QuantizeArguments& a) {
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
      {"f32", QuantizeOptions::Amp::kF32}};
  command
      .add_option_function<std::string>(
          "--amp", [&o](const std::string& name) { o.amp = kAmp.at(name); },
          "Matrix products in training; auto: bf16 where the processor has it [auto]")
      ->check(OneOf(kAmp))
      ->type_name("auto|bf16|f32")
      ->group(kGroup);
  command.add_option("--device", o.device, "Where to train: cpu, or cuda where LibTorch has it")
      ->type_name("NAME")
      ->capture_default_str()
      ->group(kGroup);
  command
      .add_flag("--direct-inverse", a.direct_inverse,
                "Learn matrices and invert them, instead of U diag(s) V^T by Cayley maps")
      ->group(kGroup);
  command
      .add_flag("--per-linear-clips", o.per_linear_clips,
                "An activation clip per linear, as the original, not one per site")
      ->group(kGroup);
}

void AddWeightOptions(CLI::App& command, QuantizeOptions* options) {
  constexpr const char* kGroup = "Weights";
  static const std::map<std::string, QuantizeOptions::Weights> kWeights = {
      {"rtn", QuantizeOptions::Weights::kRtn},
      {"gptq", QuantizeOptions::Weights::kGptq},
      {"learned", QuantizeOptions::Weights::kLearned}};
  command
      .add_option_function<std::string>(
          "--weights", [options](const std::string& name) { options->weights = kWeights.at(name); },
          "How codes are chosen: round to nearest, GPTQ, or learned corrections [rtn]")
      ->check(OneOf(kWeights))
      ->type_name("rtn|gptq|learned")
      ->group(kGroup);
  command
      .add_option("--weight-lr", options->weight_lr,
                  "Learning rate of learned corrections, in steps of the grid")
      ->type_name("X")
      ->check(CLI::Validator(CLI::PositiveNumber).description(""))
      ->capture_default_str()
      ->group(kGroup);
  command.add_flag("--gptq-mse", options->gptq_mse, "GPTQ: search each row's clip")->group(kGroup);
  command
      .add_flag("--gptq-actorder", options->gptq_act_order,
                "GPTQ: columns with the largest activations first")
      ->group(kGroup);
}

}  // namespace

Work SetUpQuantize(CLI::App& command) {
  auto arguments = std::make_shared<QuantizeArguments>();
  QuantizeArguments& a = *arguments;
  AddModelDirectory(command, "MODEL_DIR", "Hugging Face model directory", &a.directory);
  command.add_option("-o,--out", a.out, "Where to write; a packed model there is replaced")
      ->required()
      ->type_name("OUT_DIR");
  command.add_option("--method", a.options.method, "How transforms and clips are chosen")
      ->type_name(fmt::format("{}", fmt::join(MethodNames(), "|")))
      ->check(OneOf(MethodNames()))
      ->capture_default_str();
  // Before the options that it stands for: CLI11 applies them in this order, so that
  // what is given beside a preset overrides it.
  command
      .add_option_function<std::string>(
          "--preset", [&a](const std::string& name) { ApplyPreset(name, &a.options); },
          "Settings to start from; options given beside it override it [paper]")
      ->type_name(fmt::format("{}", fmt::join(PresetNames(), "|")))
      ->check(OneOf(PresetNames()));
  command
      .add_option("--scheme", a.scheme,
                  "Bits of weights, activations, KV cache: w4a4kv4, w4a16, w8a8, w4a8k8v4")
      ->type_name("SCHEME")
      ->check(CheckedBy(Scheme::Parse))
      ->capture_default_str();
  command
      .add_option("--lm-head", a.lm_head_bits,
                  "Bits of the output projection, and of the embedding where they are tied")
      ->type_name("4|8|16")
      ->check(OneOf(std::vector<int>{4, 8, 16}))
      ->capture_default_str();
  command
      .add_option("--transforms", a.transforms,
                  "Use these learned matrices (the original's flat_matrices.pth), do not train")
      ->type_name("FILE.pth");
  command.add_option("--blocks", a.options.blocks, "Quantize only the first N blocks; 0: all")
      ->type_name("N")
      ->check(Bounds(int64_t{0}, int64_t{1} << 20))
      ->capture_default_str();
  AddWeightOptions(command, &a.options);
  AddCalibrationOptions(command, a);
  AddThreads(command, &a.options.threads);
  AddJson(command, &a.json);
  command.footer(
      "The same seed and number of threads give the same bytes. OUT_DIR appears only\n"
      "when it is complete.\n"
      "\n"
      "Examples:\n"
      "  flatquant quantize models/demo-7m -o demo-4bit \\\n"
      "      --calib jsonl:models/demo-7m/selfgen-calib.jsonl --seqlen 512 --preset fast\n"
      "  flatquant quantize models/demo-7m -o demo-rtn --method rtn --scheme w4a16\n"
      "  flatquant quantize MODEL -o OUT --transforms flat_matrices.pth");
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
