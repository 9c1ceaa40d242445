#include "flatquant/compress/weights/quantized_weight.h"

#include <ATen/ATen.h>

#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {

at::Tensor QuantizedWeight::Values() const { return codes.to(at::kFloat) * scale; }

WeightGrid MakeWeightGrid(const at::Tensor& weight, const ClipLogits& clip, int bits) {
  const auto factor = [&](const at::Tensor& logit) {
    return logit.detach().to(weight.scalar_type()).sigmoid();
  };
  WeightGrid grid;
  grid.bits = bits;
  grid.high = weight.amax(1, true).clamp_min(0);
  grid.low = weight.amin(1, true).clamp_max(0);
  if (clip.max.defined()) grid.high = grid.high * factor(clip.max);
  if (clip.min.defined()) grid.low = grid.low * factor(clip.min);
  grid.scale = (at::maximum(grid.high, -grid.low) / LargestCode(bits)).to(at::kFloat);
  grid.scale = at::where(grid.scale == 0, at::ones_like(grid.scale), grid.scale);
  return grid;
}

QuantizedWeight RoundToNearest(const at::Tensor& weight, const WeightGrid& grid) {
  const at::Tensor codes = (at::minimum(at::maximum(weight, grid.low), grid.high) / grid.scale)
                               .round()
                               .clamp(SmallestCode(grid.bits), LargestCode(grid.bits))
                               .to(at::kChar);
  return {grid.bits, codes, grid.scale};
}

}  // namespace flatquant::compress
