#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>

#include "flatquant/compress/block_parameters.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/residual_stream.h"
#include "flatquant/packed/scheme.h"

namespace flatquant::compress {

// How one block is trained.
struct TrainingOptions {
  int epochs = 15;
  int64_t batch = 4;
  double lr = 5e-3;               // transforms and diagonals
  double clip_lr = 5e-2;          // clips
  double weight_lr = 0;           // corrections of the weights, in steps of their grids
  bool quantized_stream = false;  // inputs from the quantized blocks before this one
  uint64_t seed = 0;              // order of the windows
  Amp amp = Amp::kOff;            // of matrix products
};

TrainingOptions TrainingOptionsOf(const QuantizeOptions& options);

// Optimizer steps that a block takes.
int64_t TrainingSteps(const TrainingOptions& options, int64_t windows);

struct TrainingResult {
  double loss_before = 0;  // MSE of the block's output over the probe windows
  double loss_after = 0;
};

// Trains the parameters so that the quantized block's outputs approach the
// original's: loss = MSE / stop_gradient(MSE), AdamW (betas 0.9 and 0.999, weight
// decay 0.01), learning rates falling along a cosine to a thousandth.
// With quantized_stream the block also learns to undo what the quantized blocks
// before it did: its inputs are theirs, its target stays the original's output.
// stream: after RunBlock of this block. on_step: called after each step.
// Errors: calibration.diverged when the loss or a gradient stops being finite.
TrainingResult TrainBlock(const ModelConfig& config, const BlockWeights& weights,
                          const Scheme& scheme, const TrainingOptions& options,
                          const ResidualStream& stream, const BlockParameters& parameters,
                          const std::function<void()>& on_step);

// Windows that the trained starts of a block are compared on: more than the probe's, which would
// leave the choice to the noise of few windows.
inline constexpr int64_t kSelectionWindows = 32;

// What they are compared by: mean squared error of the quantized block's outputs over up to
// kSelectionWindows windows, evenly spaced, with matrix products as in training. The arguments
// as for TrainBlock. Errors: calibration.diverged.
double SelectionLoss(const ModelConfig& config, const BlockWeights& weights, const Scheme& scheme,
                     const TrainingOptions& options, const ResidualStream& stream,
                     const BlockParameters& parameters);

}  // namespace flatquant::compress
