#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "flatquant/compress/block_forward.h"
#include "flatquant/compress/block_weights.h"

namespace flatquant::compress {

// Folding must not change the network. The largest error that passes, relative
// to the root mean square of what the block adds to its input.
//
// Both sides are computed in float64; what differs is that everything folded has
// been rounded to float32, each element by at most 2^-24 = 6e-8 relative. A
// transform of condition number c lets that grow to 6e-8 c at a linear's output,
// and the softmax multiplies it by the size of its logits (tens) in the worst
// case: about 1e-5 for c = 10. Mistakes in folding (a transposed matrix, a
// forgotten bias) give 1e-2 and more.
inline constexpr double kSelfTestBound = 2e-4;

// The largest error over tokens of the folded block, as float32, against the
// original: max_t |f(x)_t - g(x)_t| / rms_t |g(x)_t - x_t| with Euclidean norms.
// folded: Fold's result in float64. x: [batch, tokens, hidden], any float type.
double SelfTestError(const ModelConfig& config, const BlockWeights& weights,
                     const BlockTensors& folded, const at::Tensor& x);

// Input for models without calibration data: [1, tokens, hidden], standard normal.
at::Tensor RandomBlockInput(int64_t tokens, int64_t hidden, uint64_t seed, at::Device device);

}  // namespace flatquant::compress
