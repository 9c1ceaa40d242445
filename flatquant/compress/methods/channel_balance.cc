#include "flatquant/compress/methods/channel_balance.h"

#include <ATen/ATen.h>

#include "flatquant/base/error.h"

namespace flatquant::compress {

at::Tensor ChannelBalance(const BlockTask& task, Site site, double a) {
  FLATQUANT_CHECK(task.stream != nullptr);
  constexpr double kFloor = 1e-5;
  at::Tensor largest_weight;
  for (const Linear which : LinearsOf(site)) {
    const at::Tensor largest = task.weights.weight(which).abs().amax(0);
    largest_weight = largest_weight.defined() ? at::maximum(largest_weight, largest) : largest;
  }
  // A channel that is always zero would divide by zero; any d serves it.
  const at::Tensor largest_input = task.stream->site_maxima(site).clamp_min(kFloor);
  return (largest_weight.pow(1 - a) / largest_input.pow(a)).clamp_min(kFloor);
}

}  // namespace flatquant::compress
