#include "flatquant/compress/flat_adamw.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include "flatquant/base/error.h"
#include "flatquant/compress/ops/adamw.h"

namespace flatquant::compress {
namespace {

constexpr double kWeightDecay = 0.01;

at::Tensor Joined(const std::vector<at::Tensor>& tensors) {
  std::vector<at::Tensor> parts;
  for (const at::Tensor& tensor : tensors) parts.push_back(tensor.reshape({-1}));
  return at::cat(parts);
}

}  // namespace

FlatAdamW::FlatAdamW(const std::vector<Group>& groups, int64_t steps,
                     const std::function<double(int64_t)>& schedule) {
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> rates;
  for (const Group& group : groups) {
    for (const at::Tensor& tensor : group.tensors) {
      parameters_.push_back(tensor);
      rates.push_back(at::full({tensor.numel()}, group.rate, tensor.options()));
    }
  }
  FLATQUANT_CHECK(!parameters_.empty());
  values_ = Joined(parameters_);
  rates_ = at::cat(rates);
  mean_ = at::zeros_like(values_);
  square_ = at::zeros_like(values_);
  int64_t begin = 0;
  for (at::Tensor& parameter : parameters_) {
    parameter.set_data(values_.narrow(0, begin, parameter.numel()).view(parameter.sizes()));
    begin += parameter.numel();
  }

  const at::Tensor table = at::empty({steps, 3}, at::kFloat);
  auto rows = table.accessor<float, 2>();
  for (int64_t step = 0; step < steps; ++step) {
    const AdamWFactors factors = AdamWFactors::At(step + 1, schedule(step));
    rows[step][0] = static_cast<float>(factors.schedule);
    rows[step][1] = static_cast<float>(factors.mean);
    rows[step][2] = static_cast<float>(factors.deviation);
  }
  all_factors_ = table.to(values_.device());
  factors_ = at::empty({3}, values_.options());
}

void FlatAdamW::Seek(int64_t step) { factors_.copy_(all_factors_.select(0, step)); }

void FlatAdamW::Step(const std::vector<at::Tensor>& gradients, const at::Tensor& factor) {
  FLATQUANT_CHECK(gradients.size() == parameters_.size());
  at::NoGradGuard no_grad;
  std::vector<at::Tensor> defined = gradients;
  for (size_t i = 0; i < defined.size(); ++i) {
    if (!defined[i].defined()) defined[i] = at::zeros_like(parameters_[i]);
  }
  const at::Tensor joined = Joined(defined);
  if (factor.defined()) joined.mul_(factor);
  AdamWStep(values_, mean_, square_, joined, rates_, factors_, kWeightDecay);
}

bool FlatAdamW::SawOnlyFinite() const { return at::isfinite(square_).all().item<bool>(); }

}  // namespace flatquant::compress
