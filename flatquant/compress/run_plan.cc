#include "flatquant/compress/run_plan.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <torch/version.h>

#include <algorithm>
#include <cstdlib>
#include <span>

#include "flatquant/base/cpu_features.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/compress/calibration.h"
#include "flatquant/compress/job/ranks.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant::compress {
namespace {

void CheckTrainingOptions(const QuantizeOptions& options) {
  const auto require = [](bool holds, const char* option, const char* what) {
    if (!holds) throw Error("quantize.bad_option", option, what, "see flatquant quantize --help");
  };
  require(options.epochs >= 0, "--epochs", "must not be negative");
  require(options.batch >= 1, "--batch", "must be at least 1");
  require(options.lr > 0, "--lr", "must be positive");
  require(options.clip_lr > 0, "--clip-lr", "must be positive");
  require(options.weight_lr > 0, "--weight-lr", "must be positive");
  constexpr int kMost = QuantizeOptions::kMostRestarts;
  require(options.restarts >= 1 && options.restarts <= kMost, "--restarts",
          fmt::format("must be between 1 and {}", kMost).c_str());
  require(options.start == QuantizeOptions::Start::kOrthogonal ||
              options.parametrization == QuantizeOptions::Parametrization::kSvdCayley,
          "--start cayley", "starts Cayley maps, of which --direct-inverse has none");
}

void CheckRestarts(const Method& method, const QuantizeOptions& options) {
  if (options.restarts <= 1) return;
  const std::string what = fmt::format("--restarts {}", options.restarts);
  if (options.transforms) {
    throw Error("quantize.bad_option", what, "transforms that are given have no random starts",
                "leave it out, or train without --transforms and --from");
  }
  if (!method.HasRandomStarts()) {
    throw Error("quantize.bad_option", what,
                "method " + options.method + " does not train from random starts",
                "use --method flatquant or leave --restarts out");
  }
}

void CheckGroups(const QuantizeOptions& options) {
  if (options.group_size > 0 && options.LearnsWeights()) {
    throw Error("quantize.bad_option", fmt::format("--group-size {}", options.group_size),
                "learned corrections are steps of a row's grid, not of a group's",
                "use --weights rtn or gptq, or --group-size -1");
  }
}

const char* WeightsName(const QuantizeOptions& options) {
  if (options.LearnsWeights()) return "learned";
  return options.UsesGptq() ? "gptq" : "rtn";
}

const char* StreamName(const QuantizeOptions& options) {
  return options.stream == QuantizeOptions::Stream::kQuantized ? "quantized" : "full precision";
}

const char* AmpName(Amp amp) {
  if (amp == Amp::kF16) return "f16";
  return amp == Amp::kBF16 ? "bf16" : "f32";
}

std::string FileFingerprint(const std::filesystem::path& path) {
  Fingerprint fingerprint;
  fingerprint.Add(MappedFile::Open(path).bytes());
  return fmt::format("{} {:016x}", path.filename().string(), fingerprint.value());
}

// So that the same settings give the same bytes on a GPU, too. Before its first use.
void UseDeterministicKernels() {
  ::setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);  // as cuBLAS asks for it
  at::Context& context = at::globalContext();
  // Not only a wish: attention's gradient takes it for granted that a wish may be ignored.
  context.setDeterministicAlgorithms(true, /*warn_only=*/false);
  // Partial sums in float16 would overflow where the products themselves do not.
  context.setAllowFP16ReductionCuBLAS(false);
#if TORCH_VERSION_MAJOR >= 2 && (TORCH_VERSION_MAJOR > 2 || TORCH_VERSION_MINOR >= 5)
  // A debugging aid that costs a pass over every new tensor.
  context.setDeterministicFillUninitializedMemory(false);
  // Attention that chooses among kernels by timing them, or has no deterministic gradient.
  context.setSDPUseCuDNN(false);
  context.setSDPUseMemEfficient(false);
#endif
}

}  // namespace

std::unique_ptr<const Method> FindMethod(const QuantizeOptions& options) {
  std::unique_ptr<const Method> method = MakeMethod(options.method);
  if (method == nullptr) {
    throw Error("quantize.unknown_method", "--method " + options.method, "there is no such method",
                fmt::format("choose one of {}", fmt::join(MethodNames(), ", ")));
  }
  const bool of_the_original =
      options.transforms && options.transforms->extension() != ".safetensors";
  if (of_the_original && options.method != "flatquant") {
    throw Error("quantize.bad_option", "--transforms",
                "learned matrices are FlatQuant's, not those of method " + options.method,
                "use --method flatquant or leave --transforms out");
  }
  CheckRestarts(*method, options);
  return method;
}

at::Device ParseDevice(const QuantizeOptions& options) {
  std::string name = options.device;
  const Ranks* ranks = options.job ? options.job->ranks : nullptr;
  if (name == "cuda" && ranks != nullptr && ranks->size() > 1) {
    name += ":" + std::to_string(ranks->local_rank());
  }
  try {
    const at::Device device(name);
    if (!device.is_cpu()) UseDeterministicKernels();
    at::empty({1}, at::TensorOptions().device(device));  // fails where the device is not there
    return device;
  } catch (const c10::Error&) {
    throw Error("quantize.bad_device", "--device " + name,
                "this build of LibTorch cannot compute there", "use --device cpu");
  }
}

Amp AmpOf(const QuantizeOptions& options, const ModelConfig& config, const at::Device& device) {
  switch (options.amp) {
    case QuantizeOptions::Amp::kBF16:
      return Amp::kBF16;
    case QuantizeOptions::Amp::kF16:
      if (!device.is_cpu()) return Amp::kF16;
      throw Error("quantize.bad_option", "--amp f16",
                  "training on a CPU has no matrix products in float16",
                  "use --amp bf16 or f32, or --device cuda");
    case QuantizeOptions::Amp::kF32:
      return Amp::kOff;
    case QuantizeOptions::Amp::kAuto:
      break;
  }
  if (device.is_cpu()) return GetCpuFeatures().avx512bf16 ? Amp::kBF16 : Amp::kOff;
  // Float16's finer steps are worth a tenth of perplexity where transforms and clips alone are
  // trained, nothing where weights are, too (docs/quality.md). Qwen2's activations exceed it.
  const bool is_large = config.architecture == Architecture::kQwen2;
  return options.LearnsWeights() || is_large ? Amp::kBF16 : Amp::kF16;
}

bool UsesCalibration(const Method& method, const QuantizeOptions& options) {
  return (method.NeedsCalibration() && !options.transforms) || options.LearnsWeights() ||
         options.UsesGptq();
}

void ThrowNeedsCalibration(const QuantizeOptions& options) {
  throw Error("quantize.needs_calibration", "--calib", "method " + options.method + " needs text",
              "pass --calib KIND:PATH, e.g. --calib wikitext2:wiki.train.raw");
}

RunPlan::RunPlan(const SourceModel& source, const QuantizeOptions& asked,
                 const TokenWindows* calibration_windows)
    : model(source),
      config(source.config()),
      options(asked),
      windows(calibration_windows),
      method(FindMethod(asked)),
      device(ParseDevice(asked)),
      blocks(asked.blocks > 0 ? std::min(asked.blocks, source.config().layers)
                              : source.config().layers),
      amp(AmpOf(asked, config, device)),
      trains_weights_afterwards(asked.LearnsWeights() &&
                                (asked.transforms || !method->LearnsWeights())) {
  CheckGroups(options);
  if (options.transforms) learned = LearnedParameters::Open(*options.transforms, config, device);
  if (!UsesCalibration(*method, options)) return;
  FLATQUANT_CHECK(windows != nullptr);
  CheckTrainingOptions(options);
  in_order = options.stream == QuantizeOptions::Stream::kQuantized || options.UsesGptq();
  if (!learned) steps_per_block = method->StepsPerBlock(options, windows->count);
  if (trains_weights_afterwards) {
    steps_per_block += TrainingSteps(TrainingOptionsOf(options), windows->count);
  }
}

std::map<std::string, std::string> Provenance(const RunPlan& plan) {
  const QuantizeOptions& options = plan.options;
  std::map<std::string, std::string> provenance = {{"tool_version", FLATQUANT_VERSION},
                                                   {"method", options.method},
                                                   {"weights", WeightsName(options)}};
  if (options.transforms) provenance["transforms"] = options.transforms->filename().string();
  if (plan.windows != nullptr) {
    provenance["seed"] = std::to_string(options.seed);
    provenance["data"] = plan.windows->Fingerprint();
    provenance["stream"] = StreamName(options);
    provenance["calibration"] =
        fmt::format("{}x{} tokens, {} epochs, batch {}, lr {}", plan.windows->count,
                    plan.windows->length, options.epochs, options.batch, options.lr);
    if (options.restarts > 1) {
      provenance["calibration"] += fmt::format(", best of {} starts", options.restarts);
    }
    if (options.calib) {
      provenance["data_source"] =
          options.calib->KindName() + ":" + options.calib->path.filename().string();
    }
  }
  return provenance;
}

JobSettings SettingsOf(const RunPlan& plan) {
  const QuantizeOptions& options = plan.options;
  const auto yes = [](bool value) { return std::string(value ? "yes" : "no"); };
  JobSettings settings = {
      {"flatquant", FLATQUANT_VERSION},
      {"model", fmt::format("{:016x}", ModelFingerprint(plan.model.directory()))},
      {"--method", options.method},
      {"--scheme", options.scheme.Name()},
      {"--weights", WeightsName(options)},
      {"--group-size", std::to_string(options.group_size > 0 ? options.group_size : -1)},
      {"--blocks", std::to_string(plan.blocks)},
      {"--seed", std::to_string(options.seed)},
      {"--device", plan.device.is_cpu() ? "cpu" : "cuda"},
      {"--threads", std::to_string(OpThreads())}};
  if (options.transforms) {
    settings.emplace_back("--transforms", FileFingerprint(*options.transforms));
  }
  if (plan.windows == nullptr) return settings;
  const std::initializer_list<std::pair<const char*, std::string>> calibration = {
      {"calibration data", fmt::format("{} windows of {} tokens, {}", plan.windows->count,
                                       plan.windows->length, plan.windows->Fingerprint())},
      {"--epochs", std::to_string(options.epochs)},
      {"--batch", std::to_string(options.batch)},
      {"--lr", fmt::format("{}", options.lr)},
      {"--clip-lr", fmt::format("{}", options.clip_lr)},
      {"--weight-lr", fmt::format("{}", options.weight_lr)},
      {"--stream", StreamName(options)},
      {"--amp", AmpName(plan.amp)},
      {"--start", options.start == QuantizeOptions::Start::kCayley ? "cayley" : "orthogonal"},
      {"--direct-inverse",
       yes(options.parametrization == QuantizeOptions::Parametrization::kDirectInverse)},
      {"--per-linear-clips", yes(options.per_linear_clips)},
      {"--flatten-kl", fmt::format("{}", options.flatten_kl)},
      {"--flatten-rows", yes(options.flatten_rows)},
      {"--gptq-mse", yes(options.gptq_mse)},
      {"--gptq-actorder", yes(options.gptq_act_order)}};
  settings.insert(settings.end(), calibration.begin(), calibration.end());
  // Named only where it says something, so that jobs from before there were restarts go on.
  if (options.restarts > 1) {
    settings.emplace_back("--restarts", std::to_string(options.restarts));
  }
  return settings;
}

}  // namespace flatquant::compress

namespace flatquant {

std::vector<std::pair<std::string, std::string>> QuantizeDecisions(
    const SourceModel& model, const QuantizeOptions& options, const TokenWindows* calibration) {
  const bool used = compress::UsesCalibration(*compress::FindMethod(options), options);
  if (used && calibration == nullptr) compress::ThrowNeedsCalibration(options);
  compress::SetOpThreads(options.threads);  // a setting that decides bytes
  return compress::SettingsOf(compress::RunPlan(model, options, used ? calibration : nullptr));
}

}  // namespace flatquant
