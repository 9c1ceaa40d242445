#include "flatquant/compress/weights/quantized_weight.h"

#include <ATen/ATen.h>

#include "flatquant/packed/nibbles.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant::compress {

at::Tensor OverColumns(const at::Tensor& of_groups, int64_t group_size, int64_t cols) {
  if (group_size == 0) return of_groups;
  return of_groups.repeat_interleave(group_size, 1).narrow(1, 0, cols);
}

at::Tensor QuantizedWeight::Values() const {
  return codes.to(at::kFloat) * OverColumns(scale, group_size, codes.size(1));
}

WeightGrid MakeWeightGrid(const at::Tensor& weight, const ClipLogits& clip, int bits,
                          int64_t group_size) {
  const auto factor = [&](const at::Tensor& logit) {
    return logit.detach().to(weight.scalar_type()).sigmoid();
  };
  WeightGrid grid;
  grid.bits = bits;
  const int64_t cols = weight.size(1);
  grid.group_size = group_size < cols ? group_size : 0;
  const int64_t groups = GroupCount(cols, grid.group_size);
  // Zeros that fill up the last group change no range, which has the zero anyway.
  const int64_t missing = grid.group_size > 0 ? groups * grid.group_size - cols : 0;
  const at::Tensor filled = missing > 0 ? at::constant_pad_nd(weight, {0, missing}) : weight;
  const at::Tensor parts = filled.reshape({weight.size(0), groups, -1});
  grid.high = parts.amax(2).clamp_min(0);
  grid.low = parts.amin(2).clamp_max(0);
  if (clip.max.defined()) grid.high = grid.high * factor(clip.max);
  if (clip.min.defined()) grid.low = grid.low * factor(clip.min);
  grid.scale = (at::maximum(grid.high, -grid.low) / LargestCode(bits)).to(at::kFloat);
  grid.scale = at::where(grid.scale == 0, at::ones_like(grid.scale), grid.scale);
  return grid;
}

QuantizedWeight RoundToNearest(const at::Tensor& weight, const WeightGrid& grid) {
  const auto each = [&](const at::Tensor& of_groups) {
    return OverColumns(of_groups, grid.group_size, weight.size(1));
  };
  const at::Tensor clamped = at::minimum(at::maximum(weight, each(grid.low)), each(grid.high));
  const at::Tensor codes = (clamped / each(grid.scale))
                               .round()
                               .clamp(SmallestCode(grid.bits), LargestCode(grid.bits))
                               .to(at::kChar);
  return {grid.bits, codes, grid.scale, grid.group_size};
}

}  // namespace flatquant::compress
