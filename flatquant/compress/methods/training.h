#pragma once

#include <cstdint>

#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {

// Trains what of the parameters requires gradients, as the task's options say, and
// reports the losses. seed: of the windows' order. Errors: calibration.diverged.
void Train(const BlockTask& task, uint64_t seed, const BlockParameters& parameters,
           BlockReport* report);

// What several trained starts of the task's block are compared by (calibration.h).
double SelectionLoss(const BlockTask& task, const BlockParameters& parameters);

}  // namespace flatquant::compress
