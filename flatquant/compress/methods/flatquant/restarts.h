#pragma once

#include <cstdint>
#include <functional>

#include "flatquant/base/rng.h"
#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {

// The random numbers of a block's start, independent of other blocks' and other starts'.
Rng StartRng(uint64_t seed, int64_t layer, int start);

// Trains the task's block from one of its starts. report: the losses. Errors:
// calibration.diverged.
BlockParameters TrainStart(const BlockTask& task, int start, BlockReport* report);

// What a start led to.
struct TrainedStart {
  BlockParameters parameters;
  BlockReport losses;  // before and after
  double loss = 0;     // what starts are compared by
};

// The start of least loss among `count`, the earliest of equals. `train` is called for each in
// order; of those before, only the best is still held. A start that diverges is left out.
// report: losses of the one that is kept, start_losses, chosen_start. Errors: those of `train`;
// calibration.diverged where all starts do.
BlockParameters BestStart(int count, const std::function<TrainedStart(int start)>& train,
                          BlockReport* report);

}  // namespace flatquant::compress
