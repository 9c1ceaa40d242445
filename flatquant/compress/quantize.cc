#include "flatquant/compress/quantize.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "flatquant/base/cpu_features.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/calibration.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/import_pth.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/ops/memory.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/compress/residual_stream.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/compress/weights/gptq_block.h"
#include "flatquant/data/lazy_tokenizer.h"

namespace flatquant {
namespace {

using Clock = std::chrono::steady_clock;
namespace fc = compress;

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

// Tokens that the self-test runs through a block.
constexpr int64_t kSelfTestTokens = 64;

std::string Join(const std::vector<std::string>& names) {
  std::string joined;
  for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
  return joined;
}

std::unique_ptr<fc::Method> FindMethod(const QuantizeOptions& options) {
  std::unique_ptr<fc::Method> method = fc::MakeMethod(options.method);
  if (method == nullptr) {
    throw Error("quantize.unknown_method", "--method " + options.method, "there is no such method",
                "choose one of " + Join(MethodNames()));
  }
  if (options.transforms && options.method != "flatquant") {
    throw Error("quantize.bad_option", "--transforms",
                "learned matrices are FlatQuant's, not those of method " + options.method,
                "use --method flatquant or leave --transforms out");
  }
  return method;
}

bool UsesCalibration(const fc::Method& method, const QuantizeOptions& options) {
  return (method.NeedsCalibration() && !options.transforms) || options.LearnsWeights() ||
         options.UsesGptq();
}

void CheckTrainingOptions(const QuantizeOptions& options) {
  const auto require = [](bool holds, const char* option, const char* what) {
    if (!holds) throw Error("quantize.bad_option", option, what, "see flatquant quantize --help");
  };
  require(options.epochs >= 0, "--epochs", "must not be negative");
  require(options.batch >= 1, "--batch", "must be at least 1");
  require(options.lr > 0, "--lr", "must be positive");
  require(options.clip_lr > 0, "--clip-lr", "must be positive");
  require(options.weight_lr > 0, "--weight-lr", "must be positive");
}

at::Device ParseDevice(const std::string& name) {
  try {
    const at::Device device(name);
    at::empty({1}, at::TensorOptions().device(device));  // fails where the device is not there
    return device;
  } catch (const c10::Error&) {
    throw Error("quantize.bad_device", "--device " + name,
                "this build of LibTorch cannot compute there", "use --device cpu");
  }
}

bool UsesBF16(const QuantizeOptions& options, const at::Device& device) {
  switch (options.amp) {
    case QuantizeOptions::Amp::kBF16:
      return true;
    case QuantizeOptions::Amp::kF32:
      return false;
    case QuantizeOptions::Amp::kAuto:
      break;
  }
  return !device.is_cpu() || GetCpuFeatures().avx512bf16;
}

const char* WeightsName(const QuantizeOptions& options) {
  if (options.LearnsWeights()) return "learned";
  return options.UsesGptq() ? "gptq" : "rtn";
}

std::map<std::string, std::string> Provenance(const QuantizeOptions& options,
                                              const TokenWindows* windows) {
  std::map<std::string, std::string> provenance = {{"tool_version", FLATQUANT_VERSION},
                                                   {"method", options.method},
                                                   {"weights", WeightsName(options)}};
  if (options.transforms) provenance["transforms"] = options.transforms->filename().string();
  if (windows != nullptr) {
    provenance["seed"] = std::to_string(options.seed);
    provenance["data"] = windows->Fingerprint();
    provenance["stream"] =
        options.stream == QuantizeOptions::Stream::kQuantized ? "quantized" : "full precision";
    provenance["calibration"] =
        fmt::format("{}x{} tokens, {} epochs, batch {}, lr {}", windows->count, windows->length,
                    options.epochs, options.batch, options.lr);
    if (options.calib) {
      provenance["data_source"] =
          options.calib->KindName() + ":" + options.calib->path.filename().string();
    }
  }
  return provenance;
}

// Carries one run from block to block.
class Quantizer {
 public:
  Quantizer(const SourceModel& model, const QuantizeOptions& options, const TokenWindows* windows)
      : model_(model),
        config_(model.config()),
        options_(options),
        method_(FindMethod(options)),
        device_(ParseDevice(options.device)) {
    if (options.transforms) {
      learned_ = fc::LearnedParameters::Open(*options.transforms, config_, device_);
    }
    if (UsesCalibration(*method_, options)) {
      FLATQUANT_CHECK(windows != nullptr);
      CheckTrainingOptions(options);
      stream_.emplace(model, *windows, device_);
      if (!learned_) steps_ = method_->StepsPerBlock(options, windows->count);
      if (LearnsWeightsAfterwards()) {
        steps_ += fc::TrainingSteps(fc::TrainingOptionsOf(options), windows->count);
      }
    }
  }

  PackedModel Run(QuantizeReport* report) {
    PackedModel packed;
    packed.config = config_;
    packed.scheme = options_.scheme;
    const int64_t quantized =
        options_.blocks > 0 ? std::min(options_.blocks, config_.layers) : config_.layers;
    const Clock::time_point start = Clock::now();
    {
      Progress progress(stream_ ? "calibrating" : "quantizing",
                        static_cast<uint64_t>(quantized * (steps_ + 1)));
      for (int64_t layer = 0; layer < quantized; ++layer) {
        BlockReport block;
        block.block = layer;
        packed.blocks.push_back(QuantizeBlock(layer, &progress, &block, report));
        report->blocks.push_back(block);
      }
    }
    for (int64_t layer = quantized; layer < config_.layers; ++layer) {
      packed.blocks.push_back(KeepBlock(layer));
    }
    if (stream_) report->calibration_seconds = SecondsSince(start);
    packed.embedding = model_.Embedding();
    packed.final_norm =
        fc::FromTorch(fc::ToTorch(model_.FinalNorm(), at::kFloat, at::Device(at::kCPU)));
    if (!config_.tied_embeddings) packed.lm_head = model_.LmHead();
    fmt::print(stderr,
               "self-test: the folded network equals the original within {:.1e} (bound {:.0e})\n",
               report->self_test_error, fc::kSelfTestBound);
    return packed;
  }

 private:
  PackedBlock QuantizeBlock(int64_t layer, Progress* progress, BlockReport* block,
                            QuantizeReport* report) {
    const Clock::time_point start = Clock::now();
    const fc::BlockWeights weights = fc::LoadBlockWeights(model_, layer, device_);
    if (stream_) stream_->RunBlock(weights, options_.batch);
    const fc::BlockParameters parameters = ChooseParameters(layer, weights, progress, block);

    at::NoGradGuard no_grad;
    const fc::BlockTensors folded = fc::Fold(config_, weights, parameters, at::kDouble);
    SelfTest(layer, weights, folded, report);
    const fc::QuantizedWeights quantized = ChooseCodes(layer, folded, parameters);
    PackedBlock packed = fc::PackBlock(folded, weights, quantized, parameters, options_.scheme);
    if (stream_ && UsesQuantizedStream()) {
      stream_->RunQuantizedBlock(
          fc::QuantizedForward(folded, quantized, parameters, options_.scheme), options_.batch);
    }
    if (stream_) stream_->Advance();

    block->seconds = SecondsSince(start);
    progress->Advance();
    if (stream_) {
      // Methods that do not train know no loss.
      const std::string loss =
          block->loss_before > 0
              ? fmt::format("loss {:.4e} -> {:.4e} in ", block->loss_before, block->loss_after)
              : "";
      progress->Line(fmt::format("block {}/{}: {}{}", layer + 1, config_.layers, loss,
                                 FormatDuration(block->seconds)));
    }
    return packed;
  }

  fc::BlockParameters ChooseParameters(int64_t layer, const fc::BlockWeights& weights,
                                       Progress* progress, BlockReport* block) const {
    const fc::BlockTask task{config_,
                             options_,
                             layer,
                             weights,
                             stream_ ? &*stream_ : nullptr,
                             UsesBF16(options_, device_),
                             device_,
                             [progress] { progress->Advance(); }};
    fc::BlockParameters parameters =
        learned_ ? learned_->Block(layer) : method_->Choose(task, block);
    if (LearnsWeightsAfterwards()) LearnWeights(task, &parameters, block);
    return parameters;
  }

  bool LearnsWeightsAfterwards() const {
    return options_.LearnsWeights() && (learned_ || !method_->LearnsWeights());
  }

  // Nothing but the corrections is trained: the rest is given.
  static void LearnWeights(const fc::BlockTask& task, fc::BlockParameters* parameters,
                           BlockReport* block) {
    fc::AddWeightCorrections(task.weights, parameters);
    fc::TrainingOptions training = fc::TrainingOptionsOf(task.options);
    training.seed = task.options.seed;
    training.amp = task.amp;
    const fc::TrainingResult result =
        fc::TrainBlock(task.config, task.weights, task.options.scheme, training, *task.stream,
                       *parameters, task.on_step);
    block->loss_before = result.loss_before;
    block->loss_after = result.loss_after;
  }

  bool UsesQuantizedStream() const {
    return options_.stream == QuantizeOptions::Stream::kQuantized || options_.UsesGptq();
  }

  fc::QuantizedWeights ChooseCodes(int64_t layer, const fc::BlockTensors& folded,
                                   const fc::BlockParameters& parameters) const {
    if (options_.scheme.weight_bits >= 16) return {};
    if (!options_.UsesGptq()) return fc::RoundWeights(folded, parameters, options_.scheme);
    fc::GptqBlockOptions gptq;
    gptq.gptq.act_order = options_.gptq_act_order;
    gptq.mse = options_.gptq_mse;
    gptq.batch = options_.batch;
    return fc::GptqBlock(config_, folded, parameters, options_.scheme, *stream_, gptq,
                         fmt::format("block {}", layer));
  }

  // A block that stays as it is.
  PackedBlock KeepBlock(int64_t layer) const {
    const fc::BlockWeights weights = fc::LoadBlockWeights(model_, layer, device_);
    const fc::BlockParameters nothing;
    return fc::PackBlock(fc::Fold(config_, weights, nothing, at::kDouble), weights, {}, nothing,
                         Scheme{16, 16, 16, 16});
  }

  void SelfTest(int64_t layer, const fc::BlockWeights& weights, const fc::BlockTensors& folded,
                QuantizeReport* report) const {
    const at::Tensor x =
        stream_ ? stream_->inputs().narrow(0, 0, 1).narrow(
                      1, 0, std::min(kSelfTestTokens, stream_->tokens()))
                : fc::RandomBlockInput(kSelfTestTokens, config_.hidden, options_.seed, device_);
    const double error = fc::SelfTestError(config_, weights, folded, x);
    report->self_test_error = std::max(report->self_test_error, error);
    if (error <= fc::kSelfTestBound) return;  // false for NaN too
    throw Error("quantize.self_test", fmt::format("block {}", layer),
                fmt::format("with quantizers off the folded block differs from the original by "
                            "{:.1e} (bound {:.0e})",
                            error, fc::kSelfTestBound),
                "nothing was written; its transforms are ill-conditioned or this is a bug: lower "
                "--lr, or report it");
  }

  const SourceModel& model_;
  const ModelConfig& config_;
  const QuantizeOptions& options_;
  std::unique_ptr<fc::Method> method_;
  at::Device device_;
  std::optional<fc::LearnedParameters> learned_;
  std::optional<fc::ResidualStream> stream_;
  int64_t steps_ = 0;
};

PackedModel Run(const SourceModel& model, const QuantizeOptions& options,
                const TokenWindows* windows, QuantizeReport* report) {
  const Clock::time_point start = Clock::now();
  QuantizeReport unwanted;
  if (report == nullptr) report = &unwanted;
  *report = {};
  fc::KeepFreedMemory();
  fc::SetOpThreads(options.threads);
  PackedModel packed = Quantizer(model, options, windows).Run(report);
  packed.provenance = Provenance(options, windows);
  report->total_seconds = SecondsSince(start);
  return packed;
}

}  // namespace

PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     QuantizeReport* report) {
  if (!UsesCalibration(*FindMethod(options), options)) {
    return Run(model, options, nullptr, report);
  }
  if (!options.calib) {
    throw Error("quantize.needs_calibration", "--calib", "method " + options.method + " needs text",
                "pass --calib KIND:PATH, e.g. --calib wikitext2:wiki.train.raw");
  }
  const LazyTokenizer tokenizer(model.directory());
  const TokenWindows windows =
      CalibrationWindows(*options.calib, tokenizer, options.seqlen, options.nsamples, options.seed,
                         model.config().vocab);
  return Run(model, options, &windows, report);
}

PackedModel Quantize(const SourceModel& model, const QuantizeOptions& options,
                     const TokenWindows& calibration, QuantizeReport* report) {
  const bool used = UsesCalibration(*FindMethod(options), options);
  return Run(model, options, used ? &calibration : nullptr, report);
}

}  // namespace flatquant
