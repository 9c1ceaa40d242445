#include "flatquant/compress/methods/flatquant/initial_parameters.h"

#include <ATen/ATen.h>

#include "flatquant/base/error.h"
#include "flatquant/compress/methods/channel_balance.h"
#include "flatquant/compress/methods/site_matrices.h"

namespace flatquant::compress {
namespace {

constexpr double kClipLogit = 4.0;
constexpr double kDiagonalAlpha = 0.3;

at::TensorOptions Float(const BlockTask& task) {
  return at::TensorOptions().dtype(at::kFloat).device(task.device);
}

ClipLogits MakeClip(const BlockTask& task, at::IntArrayRef shape) {
  return {at::full(shape, kClipLogit, Float(task)).requires_grad_(),
          at::full(shape, kClipLogit, Float(task)).requires_grad_()};
}

InvertibleMatrix MakeMatrix(const BlockTask& task, int64_t n, Rng& rng) {
  return task.options.parametrization == QuantizeOptions::Parametrization::kSvdCayley
             ? InvertibleMatrix::SvdCayley(n, rng, task.device, task.options.start)
             : InvertibleMatrix::DirectInverse(n, rng, task.device);
}

}  // namespace

BlockParameters InitialParameters(const BlockTask& task, Rng& rng) {
  FLATQUANT_CHECK(task.stream != nullptr);
  const Scheme& scheme = task.options.scheme;
  BlockParameters parameters;
  AddSiteMatrices(
      task.config, scheme, KronFactors, [&](int64_t n) { return MakeMatrix(task, n, rng); },
      &parameters);
  if (QuantizesLinears(scheme)) {
    for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
      parameters.site(site).diagonal = ChannelBalance(task, site, kDiagonalAlpha).requires_grad_();
    }
  }
  if (scheme.weight_bits < 16) {
    for (const Linear which : kLinears) {
      parameters.weight_clips[static_cast<size_t>(which)] =
          MakeClip(task, {task.weights.weight(which).size(0), 1});
    }
  }
  if (scheme.act_bits < 16) {
    for (const Site site : kSites) {
      const size_t count = task.options.per_linear_clips ? LinearsOf(site).size() : 1;
      parameters.site(site).act_clips.clear();
      for (size_t i = 0; i < count; ++i) {
        parameters.site(site).act_clips.push_back(MakeClip(task, {1}));
      }
    }
  }
  if (scheme.k_bits < 16) parameters.k_clip = MakeClip(task, {1});
  if (scheme.v_bits < 16) parameters.v_clip = MakeClip(task, {1});
  return parameters;
}

}  // namespace flatquant::compress
