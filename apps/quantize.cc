// flatquant quantize: a Hugging Face model becomes a packed one.

#include "flatquant/compress/quantize.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/dry_run.h"
#include "apps/model_files.h"
#include "apps/options.h"
#include "apps/quantize_options.h"
#include "apps/transforms_options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/compress/job/ranks.h"
#include "flatquant/compress/job/stop_signal.h"
#include "flatquant/model/named_shapes.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

struct QuantizeArguments {
  std::string directory;
  std::string out;
  TransformsArguments transforms;
  QuantizeSettings settings;
  JobOptions::Resume resume = JobOptions::Resume::kAuto;
  bool dry_run = false;
  std::string shape;  // --dry-run of a network that is not here
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
  CheckTransforms(arguments.transforms);
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

std::string StoppedMessage(const fs::path& job) {
  return fmt::format(
      "flatquant: stopped; finished blocks are kept in {}: the same command goes on from there",
      Printable(job.string()));
}

// What --dry-run prints; nothing is written.
void Estimate(const QuantizeArguments& arguments) {
  const Report report(arguments.json);
  const Ranks ranks;
  if (!ranks.is_first()) return;
  const bool named = !arguments.shape.empty();
  if (!named) CheckModelDirectory(arguments.directory);
  const ModelConfig config =
      named ? NamedShape(arguments.shape) : ModelConfig::Open(arguments.directory);
  QuantizeSettings settings = arguments.settings;
  settings.Resolve(config);
  ApplyTransforms(arguments.transforms, &settings);
  ReportEstimate(config, settings.options, settings.lm_head_bits, ranks.size(), report);
}

void Run(const QuantizeArguments& arguments) {
  if (arguments.dry_run) return Estimate(arguments);
  const Report report(arguments.json);
  CheckPaths(arguments);
  Ranks ranks;
  const SourceModel model = SourceModel::Open(arguments.directory);
  QuantizeSettings settings = arguments.settings;
  ApplyTransforms(arguments.transforms, &settings);
  settings.Resolve(model.config());
  QuantizeOptions& options = settings.options;

  const JobOptions job = {JobDirectoryFor(arguments.out), arguments.resume, &ranks};
  options.job = job;

  const ExitOnSignals exit_on_signals(ranks.is_first() ? StoppedMessage(job.directory) : "");
  QuantizeReport quantized;
  PackedModel packed =
      settings.calib.empty()
          ? Quantize(model, options, &quantized)
          : Quantize(model, options, ReadCalibration(settings, arguments.directory, model.config()),
                     &quantized);
  if (!ranks.is_first()) return;
  if (settings.lm_head_bits < 16) QuantizeHead(settings.lm_head_bits, kHeadActBits, &packed);
  WritePackedModel(packed, arguments.directory, arguments.out,
                   ReportJson(quantized, packed.provenance));
  ExportTransforms(arguments.transforms, packed);
  packed.transforms.reset();
  packed.blocks.clear();  // they map the job's files
  RemoveJob(job.directory);

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

void AddResume(CLI::App& command, JobOptions::Resume* resume) {
  using Resume = JobOptions::Resume;
  static const std::map<std::string, Resume> kResume = {
      {"auto", Resume::kAuto}, {"required", Resume::kRequired}, {"never", Resume::kNever}};
  command
      .add_option_function<std::string>(
          "--resume", [resume](const std::string& name) { *resume = kResume.at(name); },
          "Go on with an interrupted run (OUT_DIR.job): if there is one, or fail, or start over "
          "[auto]")
      ->check(OneOf(kResume))
      ->type_name("auto|required|never");
}

void AddDryRun(CLI::App& command, QuantizeArguments* a) {
  constexpr const char* kGroup = "Planning";
  CLI::Option* const dry_run =
      command
          .add_flag("--dry-run", a->dry_run,
                    "Print what the run would take in time, memory and disk; write nothing")
          ->group(kGroup);
  command.add_option("--shape", a->shape, "Of a network that is not here, instead of MODEL_DIR")
      ->type_name(fmt::format("{}", fmt::join(ShapeNames(), "|")))
      ->check(OneOf(ShapeNames()))
      ->needs(dry_run)
      ->group(kGroup);
  command
      .add_option("--calib-memory", a->settings.options.calib_memory,
                  "Memory for activations, e.g. 8GB; beyond it they go to disk [no limit]")
      ->type_name("SIZE")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/true).description(""))
      ->group(kGroup);
  // What a run needs is not required by the parser, since a dry run does without.
  command.get_option("MODEL_DIR")->required(false);
  command.callback([a] {
    if (a->directory.empty() && a->shape.empty()) throw CLI::RequiredError("MODEL_DIR");
    if (a->out.empty() && !a->dry_run) throw CLI::RequiredError("--out");
  });
}

void AddWeights(CLI::App& command, QuantizeSettings* settings) {
  QuantizeOptions* const options = &settings->options;
  command
      .add_option_function<std::string>(
          "--weights", [options](const std::string& name) { options->weights = WeightsOf(name); },
          "How codes are chosen: round to nearest, GPTQ, or learned corrections [rtn]")
      ->check(OneOf(WeightsNames()))
      ->type_name("rtn|gptq|learned")
      ->group("Weights");
  AddWeightTuning(command, settings);
}

// Of training from random starts, which 'compare' and 'flatness', whose methods are several, do
// not offer.
void AddRestarts(CLI::App& command, QuantizeOptions* options) {
  command
      .add_option("--restarts", options->restarts,
                  "FlatQuant: train each block from N random starts and keep the one of least "
                  "error; N times the training")
      ->type_name("N")
      ->check(Bounds(1, QuantizeOptions::kMostRestarts))
      ->capture_default_str()
      ->group("Calibration");
}

}  // namespace

Work SetUpQuantize(CLI::App& command) {
  auto arguments = std::make_shared<QuantizeArguments>();
  QuantizeArguments& a = *arguments;
  AddModelDirectory(command, "MODEL_DIR", "Hugging Face model directory", &a.directory);
  command.add_option("-o,--out", a.out, "Where to write; a packed model there is replaced")
      ->type_name("OUT_DIR");
  command.add_option("--method", a.settings.options.method, "How transforms and clips are chosen")
      ->type_name(fmt::format("{}", fmt::join(MethodNames(), "|")))
      ->check(OneOf(MethodNames()))
      ->capture_default_str();
  AddPreset(command, &a.settings.options);
  AddGrids(command, &a.settings);
  AddTransforms(command, &a.transforms);
  AddWeights(command, &a.settings);
  AddCalibration(command, &a.settings);
  AddRestarts(command, &a.settings.options);
  AddResume(command, &a.resume);
  AddDryRun(command, &a);
  AddThreads(command, &a.settings.options.threads);
  AddJson(command, &a.json);
  command.footer(
      "The same seed and number of threads give the same bytes. OUT_DIR appears only\n"
      "when it is complete. Whatever stops a run, the same command goes on after the last\n"
      "finished block; SIGTERM and Ctrl-C end it with status 75.\n"
      "\n"
      "Examples:\n"
      "  flatquant quantize models/demo-7m -o demo-4bit \\\n"
      "      --calib jsonl:models/demo-7m/selfgen-calib.jsonl --seqlen 512 --preset fast\n"
      "  flatquant quantize models/demo-7m -o demo-rtn --method rtn --scheme w4a16\n"
      "  flatquant quantize MODEL -o OUT --transforms flat_matrices.pth\n"
      "  flatquant quantize MODEL -o OUT --from OTHER_OUT --weights gptq --calib SPEC\n"
      "  mpirun -n 4 flatquant quantize MODEL -o OUT --calib SPEC\n"
      "  flatquant quantize --dry-run --shape llama-2-70b");
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
