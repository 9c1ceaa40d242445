#include "flatquant/compress/flatness_study.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <functional>
#include <memory>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/error_landscape.h"
#include "flatquant/compress/export_transforms.h"
#include "flatquant/compress/flatness.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/ops/memory.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/compress/residual_stream.h"
#include "flatquant/compress/run_plan.h"
#include "flatquant/compress/unpack.h"

namespace flatquant {
namespace {

namespace fc = compress;

ChannelCurve Curve(const at::Tensor& magnitudes) {
  ChannelCurve curve;
  curve.flatness = fc::Flatness(magnitudes);
  const at::Tensor sorted =
      std::get<0>(magnitudes.to(at::kCPU, at::kFloat).sort(0, /*descending=*/true)).contiguous();
  curve.magnitudes.assign(sorted.data_ptr<float>(), sorted.data_ptr<float>() + sorted.numel());
  return curve;
}

// The block as it is computed with its quantizers, and without.
struct Forwards {
  fc::BlockTensors quantized;
  fc::BlockTensors exact;  // its activations are the network's own
};

// What is quantized on the way through the network: a method's blocks, made here, or a
// packed model's.
class Subject {
 public:
  Subject(std::string name, const at::Tensor& inputs) : path_(inputs) {
    study_.name = std::move(name);
  }
  virtual ~Subject() = default;

  // Units of progress that Forward reports.
  virtual int64_t steps() const { return 0; }
  virtual Forwards Forward(int64_t layer, const fc::BlockWeights& weights,
                           const fc::ResidualStream& stream,
                           const std::function<void()>& on_step) const = 0;

  // stream: after RunBlock of this block.
  void Study(const ModelConfig& config, int64_t layer, bool curves, int64_t windows, int64_t batch,
             const fc::BlockWeights& weights, const fc::ResidualStream& stream,
             const std::function<void()>& on_step) {
    const Forwards block = Forward(layer, weights, stream, on_step);
    if (curves) {
      const auto sites = fc::ChannelMagnitudes(config, block.exact, stream.rope(),
                                               stream.inputs().narrow(0, 0, windows));
      for (const Site site : kSites) {
        const fc::SiteMagnitudes& magnitudes = sites[static_cast<size_t>(site)];
        study_.sites.push_back(
            {layer, site, Curve(magnitudes.activation), Curve(magnitudes.weight)});
      }
    }
    study_.errors.push_back(path_.Advance(config, block.quantized, stream.rope(),
                                          stream.outputs().narrow(0, 0, windows), batch));
  }

  MethodStudy Take() { return std::move(study_); }

 private:
  MethodStudy study_;
  fc::QuantizedPath path_;
};

class MethodSubject : public Subject {
 public:
  MethodSubject(const SourceModel& model, const QuantizeOptions& options,
                const TokenWindows& windows, const at::Tensor& inputs)
      : Subject(options.method, inputs), plan_(model, options, &windows) {}

  int64_t steps() const override { return plan_.steps_per_block; }

  Forwards Forward(int64_t layer, const fc::BlockWeights& weights, const fc::ResidualStream& stream,
                   const std::function<void()>& on_step) const override {
    const fc::BlockTask task{plan_.config, plan_.options, layer,        weights,
                             &stream,      plan_.amp,     plan_.device, on_step};
    BlockReport losses;
    // As 'quantize' folds them, so that a packed model is the same codes.
    const fc::BlockParameters parameters = fc::AsStored(
        plan_.learned ? plan_.learned->Block(layer) : plan_.method->Choose(task, &losses));
    at::NoGradGuard no_grad;
    const Scheme& scheme = plan_.options.scheme;
    const fc::BlockTensors folded = fc::Fold(plan_.config, weights, parameters, at::kDouble);
    fc::QuantizedWeights codes;
    if (scheme.weight_bits < 16) codes = fc::RoundWeights(folded, parameters, scheme);
    return {fc::QuantizedForward(folded, codes, parameters, scheme),
            fc::FloatForward(folded, parameters, scheme)};
  }

 private:
  fc::RunPlan plan_;
};

class PackedSubject : public Subject {
 public:
  PackedSubject(std::string name, const PackedModel& packed, const at::Tensor& inputs)
      : Subject(std::move(name), inputs), packed_(packed) {}

  Forwards Forward(int64_t layer, const fc::BlockWeights&, const fc::ResidualStream&,
                   const std::function<void()>&) const override {
    const fc::BlockTensors block =
        fc::Unpack(packed_.config, packed_.blocks[static_cast<size_t>(layer)]);
    return {block, block};
  }

 private:
  const PackedModel& packed_;
};

void CheckOptions(const ModelConfig& config, const FlatnessOptions& options) {
  for (const int64_t block : options.blocks) {
    if (block >= 0 && block < config.layers) continue;
    throw Error("flatness.bad_block", fmt::format("--blocks {}", block),
                fmt::format("the model has blocks 0 to {}", config.layers - 1),
                "name some of these");
  }
  if (options.packed == nullptr) return;
  const ModelConfig& packed = options.packed->config;
  const auto shape = [](const ModelConfig& c) {
    return std::array{c.layers, c.hidden, c.ffn, c.heads, c.kv_heads, c.head_dim, c.vocab};
  };
  if (shape(packed) != shape(config)) {
    throw Error("flatness.other_model", "--packed", "is a model of another shape than the original",
                "name what 'flatquant quantize' made of this very model");
  }
  if (options.quantize.device != "cpu") {
    throw Error("flatness.device", "--device " + options.quantize.device,
                "a packed model is studied on the CPU", "leave --device or --packed out");
  }
}

// What made the packed model, unless a method studied beside it has that name.
std::string PackedName(const FlatnessOptions& options) {
  const auto& provenance = options.packed->provenance;
  const auto method = provenance.find("method");
  const bool taken = method != provenance.end() &&
                     std::find(options.methods.begin(), options.methods.end(), method->second) !=
                         options.methods.end();
  return method == provenance.end() || taken ? "packed" : method->second;
}

std::vector<std::unique_ptr<Subject>> MakeSubjects(const SourceModel& model,
                                                   const TokenWindows& calibration,
                                                   const FlatnessOptions& options,
                                                   const at::Tensor& inputs) {
  std::vector<std::unique_ptr<Subject>> subjects;
  for (const std::string& method : options.methods) {
    QuantizeOptions quantize = options.quantize;
    quantize.method = method;
    quantize.weights = QuantizeOptions::Weights::kRtn;
    quantize.transforms.reset();
    if (method == "flatquant") quantize.transforms = options.transforms;
    subjects.push_back(std::make_unique<MethodSubject>(model, quantize, calibration, inputs));
  }
  if (options.packed != nullptr) {
    subjects.push_back(
        std::make_unique<PackedSubject>(PackedName(options), *options.packed, inputs));
  }
  return subjects;
}

}  // namespace

std::vector<MethodStudy> StudyFlatness(const SourceModel& model, const TokenWindows& calibration,
                                       const FlatnessOptions& options) {
  const ModelConfig& config = model.config();
  CheckOptions(config, options);
  fc::KeepFreedMemory();
  fc::SetOpThreads(options.quantize.threads);
  fc::ResidualStream stream(model, calibration, at::Device(options.quantize.device));
  const int64_t windows = std::clamp<int64_t>(options.windows, 1, stream.windows());
  const auto subjects =
      MakeSubjects(model, calibration, options, stream.inputs().narrow(0, 0, windows));

  int64_t steps = 0;
  for (const auto& subject : subjects) steps += subject->steps() + 1;
  Progress progress("flatness", static_cast<uint64_t>(config.layers * steps));
  const auto on_step = [&progress] { progress.Advance(); };
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const bool curves =
        options.blocks.empty() ||
        std::find(options.blocks.begin(), options.blocks.end(), layer) != options.blocks.end();
    const fc::BlockWeights weights = fc::LoadBlockWeights(model, layer, stream.inputs().device());
    stream.RunBlock(weights, options.quantize.batch);
    for (const auto& subject : subjects) {
      subject->Study(config, layer, curves, windows, options.quantize.batch, weights, stream,
                     on_step);
      progress.Advance();
    }
    stream.Advance();
  }
  std::vector<MethodStudy> studies;
  for (const auto& subject : subjects) studies.push_back(subject->Take());
  return studies;
}

}  // namespace flatquant
