#include "flatquant/compress/methods/training.h"

#include "flatquant/compress/calibration.h"

namespace flatquant::compress {
namespace {

TrainingOptions OptionsOf(const BlockTask& task) {
  TrainingOptions training = TrainingOptionsOf(task.options);
  training.amp = task.amp;
  return training;
}

}  // namespace

void Train(const BlockTask& task, uint64_t seed, const BlockParameters& parameters,
           BlockReport* report) {
  TrainingOptions training = OptionsOf(task);
  training.seed = seed;
  const TrainingResult result = TrainBlock(task.config, task.weights, task.options.scheme, training,
                                           *task.stream, parameters, task.on_step);
  report->loss_before = result.loss_before;
  report->loss_after = result.loss_after;
}

double SelectionLoss(const BlockTask& task, const BlockParameters& parameters) {
  return SelectionLoss(task.config, task.weights, task.options.scheme, OptionsOf(task),
                       *task.stream, parameters);
}

}  // namespace flatquant::compress
