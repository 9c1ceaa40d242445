#include "flatquant/compress/export_transforms.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <limits>
#include <string>

#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/model/network.h"

namespace flatquant::compress {
namespace {

at::Tensor Detached(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.detach() : tensor;
}

ClipLogits Detached(const ClipLogits& clip) { return {Detached(clip.max), Detached(clip.min)}; }

InvertibleMatrix Rounded(const InvertibleMatrix& matrix) {
  if (matrix.is_identity()) return matrix;
  at::NoGradGuard no_grad;
  return InvertibleMatrix::Fixed(matrix.Evaluate(at::kDouble).matrix.to(at::kFloat), "a transform");
}

bool IsDefault(const ClipLogits& clip) { return !clip.max.defined() && !clip.min.defined(); }

// [n, 2]: the logits of max and min; a factor of 1 has an infinite one.
at::Tensor LogitPairs(const ClipLogits& clip) {
  const at::Tensor& known = clip.max.defined() ? clip.max : clip.min;
  const int64_t rows = known.defined() ? known.numel() : 1;
  const auto column = [rows](const at::Tensor& logits) {
    return logits.defined() ? logits.detach().to(at::kCPU, at::kFloat).reshape({rows})
                            : at::full({rows}, std::numeric_limits<float>::infinity());
  };
  return at::stack({column(clip.max), column(clip.min)}, 1);
}

}  // namespace

BlockParameters AsStored(const BlockParameters& parameters) {
  BlockParameters stored = parameters;
  for (BlockParameters::SiteParameters& site : stored.sites) {
    site.left = Rounded(site.left);
    site.right = Rounded(site.right);
    site.diagonal = Detached(site.diagonal);
    for (ClipLogits& clip : site.act_clips) clip = Detached(clip);
  }
  stored.key = Rounded(stored.key);
  stored.value = Rounded(stored.value);
  for (ClipLogits& clip : stored.weight_clips) clip = Detached(clip);
  stored.k_clip = Detached(stored.k_clip);
  stored.v_clip = Detached(stored.v_clip);
  return stored;
}

std::optional<std::map<std::string, Tensor>> TransformTensors(int64_t layer,
                                                              const BlockParameters& parameters) {
  std::map<std::string, Tensor> tensors;
  for (const Site which : kSites) {
    if (parameters.site(which).flattening.defined()) return std::nullopt;
  }
  const std::string block = fmt::format("model.layers.{}.", layer);
  const auto add = [&tensors](const std::string& name, const at::Tensor& tensor) {
    if (tensor.defined()) tensors[name] = FromTorch(tensor.to(at::kCPU, at::kFloat));
  };
  const auto add_matrix = [&add](const std::string& name, const InvertibleMatrix& matrix) {
    add(name, matrix.Evaluate(at::kDouble).matrix);
  };
  for (const Site which : kSites) {
    const BlockParameters::SiteParameters& site = parameters.site(which);
    const std::string path = block + std::string(SiteName(which));
    add_matrix(path + ".transform_left", site.left);
    add_matrix(path + ".transform_right", site.right);
    add(path + ".diagonal", site.diagonal);
    if (site.act_clips.size() == 1 && IsDefault(site.act_clips.front())) continue;
    std::vector<at::Tensor> pairs;
    for (const ClipLogits& clip : site.act_clips) pairs.push_back(LogitPairs(clip));
    add(path + ".act_clip_logits", at::cat(pairs));
  }
  for (const Linear which : kLinears) {
    const ClipLogits& clip = parameters.weight_clips[static_cast<size_t>(which)];
    if (!IsDefault(clip)) add(LinearPath(layer, which) + ".weight_clip_logits", LogitPairs(clip));
  }
  add_matrix(block + "kv_cache.k_transform", parameters.key);
  add_matrix(block + "kv_cache.v_transform", parameters.value);
  if (!IsDefault(parameters.k_clip)) {
    add(block + "kv_cache.k_clip_logits", LogitPairs(parameters.k_clip).view({2}));
  }
  if (!IsDefault(parameters.v_clip)) {
    add(block + "kv_cache.v_clip_logits", LogitPairs(parameters.v_clip).view({2}));
  }
  return tensors;
}

}  // namespace flatquant::compress
