#include "flatquant/compress/error_landscape.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "flatquant/base/error.h"

namespace flatquant::compress {

std::vector<float> QuantizedPath::Advance(const ModelConfig& config, const BlockTensors& quantized,
                                          const RopeTables& rope, const at::Tensor& original,
                                          int64_t batch) {
  FLATQUANT_CHECK(original.sizes() == activations_.sizes());
  at::NoGradGuard no_grad;
  const int64_t windows = activations_.size(0);
  at::Tensor sums =
      at::zeros({activations_.size(1)}, activations_.options().dtype(at::kDouble));  // [tokens]
  for (int64_t begin = 0; begin < windows; begin += batch) {
    const int64_t count = std::min(batch, windows - begin);
    at::Tensor x = activations_.narrow(0, begin, count);
    x.copy_(BlockForward(config, quantized, rope, x, Amp::kOff));
    const at::Tensor error = (x - original.narrow(0, begin, count)).square();
    sums += error.sum(at::IntArrayRef{0, 2}, /*keepdim=*/false, at::kDouble);
  }
  const double terms = static_cast<double>(windows * activations_.size(2));
  const at::Tensor means = (sums / terms).to(at::kFloat).to(at::kCPU).contiguous();
  const float* values = means.data_ptr<float>();
  return {values, values + means.numel()};
}

}  // namespace flatquant::compress
