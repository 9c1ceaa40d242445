#include "flatquant/compress/methods/flattenquant/divergence.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/weights/quantized_weight.h"

namespace flatquant::compress {
namespace {

// Windows that the divergence is measured on: a mean over thousands of tokens, for the
// price of two forward passes per site.
constexpr int64_t kWindows = 2;

at::Tensor LogProbabilities(const at::Tensor& stream) {
  constexpr double kTiny = 1e-12;  // a token of zeros
  return at::log_softmax(stream / (stream.square().mean(-1, true) + kTiny).sqrt(), -1);
}

}  // namespace

double SiteDivergence(const BlockTask& task, const BlockParameters& base, Site site,
                      const SiteFlattening& flattening) {
  FLATQUANT_CHECK(task.stream != nullptr);
  at::NoGradGuard no_grad;
  BlockParameters parameters = base;
  for (BlockParameters::SiteParameters& other : parameters.sites) other.flattening = {};
  parameters.site(site).flattening = flattening;

  // Of the rest nothing is quantized.
  const Scheme scheme{16, 16, 16, 16};
  BlockTensors block =
      FloatForward(Fold(task.config, task.weights, parameters, at::kFloat), parameters, scheme);
  for (const Linear which : LinearsOf(site)) {
    at::Tensor& weight = block.weights[static_cast<size_t>(which)];
    weight = RoundToNearest(weight, WeightGridOf(weight, parameters, which, scheme)).Values();
  }
  const int64_t windows = std::min(kWindows, task.stream->windows());
  const at::Tensor x = task.stream->Batch(task.stream->inputs(), 0, windows);
  const at::Tensor p = LogProbabilities(task.stream->Batch(task.stream->outputs(), 0, windows));
  const at::Tensor q =
      LogProbabilities(BlockForward(task.config, block, task.stream->rope(), x, Amp::kOff));
  return (p.exp() * (p - q)).sum(-1).mean().item<double>();
}

}  // namespace flatquant::compress
