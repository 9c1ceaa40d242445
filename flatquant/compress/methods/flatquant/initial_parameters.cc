#include "flatquant/compress/methods/flatquant/initial_parameters.h"

#include <ATen/ATen.h>

#include "flatquant/base/error.h"
#include "flatquant/compress/methods/channel_balance.h"

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

// Empty for a 1 x 1 matrix, which could only rescale its site.
InvertibleMatrix MakeMatrix(const BlockTask& task, int64_t n, Rng& rng) {
  if (n == 1) return {};
  return task.options.parametrization == QuantizeOptions::Parametrization::kSvdCayley
             ? InvertibleMatrix::SvdCayley(n, rng, task.device)
             : InvertibleMatrix::DirectInverse(n, rng, task.device);
}

}  // namespace

BlockParameters InitialParameters(const BlockTask& task, Rng& rng) {
  FLATQUANT_CHECK(task.stream != nullptr);
  const ModelConfig& config = task.config;
  const Scheme& scheme = task.options.scheme;
  const bool linears = scheme.weight_bits < 16 || scheme.act_bits < 16;

  BlockParameters parameters;
  if (linears) {
    for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
      const KronShape shape = KronFactors(SiteWidth(config, site));
      BlockParameters::SiteParameters& chosen = parameters.site(site);
      chosen.left = MakeMatrix(task, shape.left, rng);
      chosen.right = MakeMatrix(task, shape.right, rng);
      chosen.diagonal = ChannelBalance(task, site, kDiagonalAlpha).requires_grad_();
    }
    parameters.site(Site::kAttnOut).left = MakeMatrix(task, config.heads, rng);
  }
  if (scheme.k_bits < 16) parameters.key = MakeMatrix(task, config.head_dim, rng);
  if (linears || scheme.v_bits < 16) parameters.value = MakeMatrix(task, config.head_dim, rng);

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
