// flatquant quantize: a Hugging Face model becomes a packed one.

#include "flatquant/compress/quantize.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/model_files.h"
#include "apps/options.h"
#include "apps/quantize_options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

struct QuantizeArguments {
  std::string directory;
  std::string out;
  std::string transforms;
  QuantizeSettings settings;
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
          {"method", arguments.settings.options.method},
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
  const SourceModel model = SourceModel::Open(arguments.directory);
  QuantizeSettings settings = arguments.settings;
  settings.Resolve(model.config());
  QuantizeOptions& options = settings.options;
  if (!arguments.transforms.empty()) options.transforms = arguments.transforms;

  QuantizeReport quantized;
  PackedModel packed =
      settings.calib.empty()
          ? Quantize(model, options, &quantized)
          : Quantize(model, options, ReadCalibration(settings, arguments.directory, model.config()),
                     &quantized);
  if (settings.lm_head_bits < 16) QuantizeHead(settings.lm_head_bits, kHeadActBits, &packed);
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

void AddWeights(CLI::App& command, QuantizeOptions* options) {
  command
      .add_option_function<std::string>(
          "--weights", [options](const std::string& name) { options->weights = WeightsOf(name); },
          "How codes are chosen: round to nearest, GPTQ, or learned corrections [rtn]")
      ->check(OneOf(WeightsNames()))
      ->type_name("rtn|gptq|learned")
      ->group("Weights");
  AddWeightTuning(command, options);
}

}  // namespace

Work SetUpQuantize(CLI::App& command) {
  auto arguments = std::make_shared<QuantizeArguments>();
  QuantizeArguments& a = *arguments;
  AddModelDirectory(command, "MODEL_DIR", "Hugging Face model directory", &a.directory);
  command.add_option("-o,--out", a.out, "Where to write; a packed model there is replaced")
      ->required()
      ->type_name("OUT_DIR");
  command.add_option("--method", a.settings.options.method, "How transforms and clips are chosen")
      ->type_name(fmt::format("{}", fmt::join(MethodNames(), "|")))
      ->check(OneOf(MethodNames()))
      ->capture_default_str();
  AddPreset(command, &a.settings.options);
  AddGrids(command, &a.settings);
  command
      .add_option("--transforms", a.transforms,
                  "Use these learned matrices (the original's flat_matrices.pth), do not train")
      ->type_name("FILE.pth");
  AddWeights(command, &a.settings.options);
  AddCalibration(command, &a.settings);
  AddThreads(command, &a.settings.options.threads);
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
