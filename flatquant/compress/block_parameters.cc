#include "flatquant/compress/block_parameters.h"

#include <ATen/ATen.h>

namespace flatquant::compress {
namespace {

void Append(const at::Tensor& tensor, std::vector<at::Tensor>* out) {
  if (tensor.defined() && tensor.requires_grad()) out->push_back(tensor);
}

void Append(const ClipLogits& clip, std::vector<at::Tensor>* out) {
  Append(clip.max, out);
  Append(clip.min, out);
}

void Append(const InvertibleMatrix& matrix, std::vector<at::Tensor>* out) {
  for (const at::Tensor& tensor : matrix.parameters()) Append(tensor, out);
}

}  // namespace

int BlockParameters::act_bits(Site which, const Scheme& scheme) const {
  const SiteFlattening& flattening = site(which).flattening;
  return flattening.defined() ? flattening.bits : scheme.act_bits;
}

int BlockParameters::weight_bits(Linear which, const Scheme& scheme) const {
  const SiteFlattening& flattening = site(SiteOf(which)).flattening;
  return flattening.defined() ? flattening.bits : scheme.weight_bits;
}

std::vector<at::Tensor> BlockParameters::TransformTensors() const {
  std::vector<at::Tensor> tensors;
  for (const SiteParameters& site : sites) {
    Append(site.left, &tensors);
    Append(site.right, &tensors);
    Append(site.diagonal, &tensors);
  }
  Append(key, &tensors);
  Append(value, &tensors);
  return tensors;
}

std::vector<at::Tensor> BlockParameters::ClipTensors() const {
  std::vector<at::Tensor> tensors;
  for (const SiteParameters& site : sites) {
    for (const ClipLogits& clip : site.act_clips) Append(clip, &tensors);
  }
  for (const ClipLogits& clip : weight_clips) Append(clip, &tensors);
  Append(k_clip, &tensors);
  Append(v_clip, &tensors);
  return tensors;
}

std::vector<at::Tensor> BlockParameters::CorrectionTensors() const {
  std::vector<at::Tensor> tensors;
  for (const at::Tensor& correction : weight_corrections) Append(correction, &tensors);
  return tensors;
}

void AddWeightCorrections(const BlockWeights& weights, BlockParameters* parameters) {
  for (size_t i = 0; i < weights.weights.size(); ++i) {
    parameters->weight_corrections[i] = at::zeros_like(weights.weights[i]).requires_grad_();
  }
}

}  // namespace flatquant::compress
