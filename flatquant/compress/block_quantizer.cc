#include "flatquant/compress/block_quantizer.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/export_transforms.h"
#include "flatquant/compress/flatness.h"
#include "flatquant/compress/methods/training.h"
#include "flatquant/compress/weights/gptq_block.h"

namespace flatquant::compress {
namespace {

using Clock = std::chrono::steady_clock;

// Tokens that the self-test runs through a block.
constexpr int64_t kSelfTestTokens = 64;

// Mean over the rows of a site's linears of the factors that shrink their ranges.
double MeanWeightClip(const BlockParameters& parameters, Site site) {
  double sum = 0;
  int64_t count = 0;
  for (const Linear linear : LinearsOf(site)) {
    const ClipLogits& clip = parameters.weight_clips[static_cast<size_t>(linear)];
    for (const at::Tensor& logits : {clip.max, clip.min}) {
      if (!logits.defined()) continue;
      sum += at::sigmoid(logits.detach()).sum().item<double>();
      count += logits.numel();
    }
  }
  return count == 0 ? 1 : sum / static_cast<double>(count);
}

}  // namespace

BlockQuantizer::BlockQuantizer(const RunPlan& plan) : plan_(plan) {
  if (plan.windows == nullptr) return;
  const TokenWindows& windows = *plan.windows;
  const int64_t copies = plan.in_order ? 3 : 2;
  const auto bytes = static_cast<uint64_t>(copies * windows.count * windows.length *
                                           plan.config.hidden * int64_t{sizeof(float)});
  const auto& job = plan.options.job;
  stream_.emplace(plan.model, windows, plan.device,
                  StreamMemory(bytes, plan.options.calib_memory,
                               job ? job->directory : std::filesystem::temp_directory_path()));
}

void BlockQuantizer::Skip() {
  if (stream_) {
    stream_->RunBlock(LoadBlockWeights(plan_.model, position_, plan_.device), plan_.options.batch);
    stream_->Advance();
  }
  ++position_;
}

void BlockQuantizer::RestoreStream(const BlockStore& store) {
  store.GetStream(position_, stream_->RestoreQuantizedInputs());
}

FinishedBlock BlockQuantizer::Quantize(const std::function<void()>& on_step) {
  const Clock::time_point start = Clock::now();
  const Scheme& scheme = plan_.options.scheme;
  FinishedBlock done;
  BlockReport& report = done.report;
  report.block = position_;
  const BlockWeights weights = LoadBlockWeights(plan_.model, position_, plan_.device);
  if (stream_) stream_->RunBlock(weights, plan_.options.batch);
  const BlockParameters parameters = AsStored(ChooseParameters(weights, on_step, &report));
  done.transforms = TransformTensors(position_, parameters);

  at::NoGradGuard no_grad;
  const BlockTensors folded = Fold(plan_.config, weights, parameters, at::kDouble);
  report.self_test_error = SelfTest(weights, folded);
  const QuantizedWeights quantized = ChooseCodes(folded, parameters);
  done.block = PackBlock(folded, weights, quantized, parameters, scheme);
  report.sites = ReportSites(weights, folded, parameters, done.block);
  if (stream_) {
    const bool gptq_ran_it = plan_.options.UsesGptq();
    if (plan_.in_order && !gptq_ran_it && !IsLast()) {
      stream_->RunQuantizedBlock(QuantizedForward(folded, quantized, parameters, scheme),
                                 plan_.options.batch);
    }
    stream_->Advance();
  }
  ++position_;
  report.seconds = std::chrono::duration<double>(Clock::now() - start).count();
  return done;
}

BlockParameters BlockQuantizer::ChooseParameters(const BlockWeights& weights,
                                                 const std::function<void()>& on_step,
                                                 BlockReport* report) const {
  const BlockTask task{
      plan_.config, plan_.options, position_, weights, stream_ ? &*stream_ : nullptr,
      plan_.amp,    plan_.device,  on_step};
  BlockParameters parameters =
      plan_.learned ? plan_.learned->Block(position_) : plan_.method->Choose(task, report);
  if (plan_.trains_weights_afterwards) {
    // Nothing but the corrections is trained: the rest is given.
    AddWeightCorrections(weights, &parameters);
    Train(task, plan_.options.seed, parameters, report);
  }
  return parameters;
}

QuantizedWeights BlockQuantizer::ChooseCodes(const BlockTensors& folded,
                                             const BlockParameters& parameters) {
  const QuantizeOptions& options = plan_.options;
  if (options.scheme.weight_bits >= 16) return {};
  if (!options.UsesGptq()) {
    return RoundWeights(folded, parameters, options.scheme, options.group_size);
  }
  GptqBlockOptions gptq;
  gptq.gptq.act_order = options.gptq_act_order;
  gptq.gptq.mse = options.gptq_mse;
  gptq.group_size = options.group_size;
  gptq.batch = options.batch;
  gptq.is_followed = !IsLast();
  return GptqBlock(plan_.config, folded, parameters, options.scheme, gptq,
                   fmt::format("block {}", position_), &*stream_);
}

double BlockQuantizer::SelfTest(const BlockWeights& weights, const BlockTensors& folded) const {
  const at::Tensor x = stream_ ? stream_->Batch(stream_->inputs(), 0, 1)
                                     .narrow(1, 0, std::min(kSelfTestTokens, stream_->tokens()))
                               : RandomBlockInput(kSelfTestTokens, plan_.config.hidden,
                                                  plan_.options.seed, plan_.device);
  const double error = SelfTestError(plan_.config, weights, folded, x);
  if (error <= kSelfTestBound) return error;  // false for NaN too
  throw Error("quantize.self_test", fmt::format("block {}", position_),
              fmt::format("with quantizers off the folded block differs from the original by "
                          "{:.1e} (bound {:.0e})",
                          error, kSelfTestBound),
              "nothing was written; its transforms are ill-conditioned or this is a bug: lower "
              "--lr, or report it");
}

SiteReports BlockQuantizer::ReportSites(const BlockWeights& weights, const BlockTensors& folded,
                                        const BlockParameters& parameters,
                                        const PackedBlock& packed) const {
  SiteReports reports;
  for (const Site site : kSites) {
    SiteReport& report = reports[static_cast<size_t>(site)];
    report.act_clips = packed.site(site).clips;
    report.weight_clip_mean = MeanWeightClip(parameters, site);
  }
  if (!stream_) return reports;
  // One window shows the channels as well as all do.
  const auto flatness = CompareFlatness(plan_.config, FullPrecision(weights),
                                        FloatForward(folded, parameters, plan_.options.scheme),
                                        stream_->rope(), stream_->Batch(stream_->inputs(), 0, 1));
  for (size_t i = 0; i < flatness.size(); ++i) {
    const SiteFlatness& site = flatness[i];
    reports[i].flatness = SiteFlatnessReport{site.activation_before, site.activation_after,
                                             site.weight_before, site.weight_after};
  }
  return reports;
}

PackedBlock KeepBlock(const SourceModel& model, int64_t layer) {
  const BlockWeights weights = LoadBlockWeights(model, layer, at::Device(at::kCPU));
  const BlockParameters nothing;
  return PackBlock(Fold(model.config(), weights, nothing, at::kDouble), weights, {}, nothing,
                   Scheme{16, 16, 16, 16});
}

}  // namespace flatquant::compress
