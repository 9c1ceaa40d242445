#include "flatquant/compress/methods/training.h"

#include "flatquant/compress/calibration.h"

namespace flatquant::compress {

void Train(const BlockTask& task, uint64_t seed, const BlockParameters& parameters,
           BlockReport* report) {
  TrainingOptions training = TrainingOptionsOf(task.options);
  training.seed = seed;
  training.amp = task.amp;
  const TrainingResult result = TrainBlock(task.config, task.weights, task.options.scheme, training,
                                           *task.stream, parameters, task.on_step);
  report->loss_before = result.loss_before;
  report->loss_after = result.loss_after;
}

}  // namespace flatquant::compress
