#pragma once

#include <vector>

#include "flatquant/data/token_windows.h"
#include "flatquant/packed/packed_model.h"

// A packed model run in floating point through LibTorch: weights dequantized,
// activations, K and V quantized and dequantized. It shares no arithmetic with
// runtime/, which is tested against it. Free of LibTorch itself.
namespace flatquant {

// Negative log-likelihoods (natural logarithm) of the tokens of each window after
// its first: [windows.count * (windows.length - 1)], window by window.
// threads: 0 takes every usable core.
std::vector<float> FakeQuantTokenNll(const PackedModel& model, const TokenWindows& windows,
                                     int threads = 0);

}  // namespace flatquant
