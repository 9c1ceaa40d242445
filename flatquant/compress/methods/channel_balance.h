#pragma once

#include <ATen/core/Tensor.h>

#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {

// The diagonal that shares a channel's range between activation and weights:
//   d = w_max^(1-a) / x_max^a, at least 1e-5; x is multiplied, the weights are divided
// by it, w_max being the largest weight of the channel in any linear of the site and
// x_max the largest calibration activation. task.stream must be there. [width]
at::Tensor ChannelBalance(const BlockTask& task, Site site, double a);

}  // namespace flatquant::compress
