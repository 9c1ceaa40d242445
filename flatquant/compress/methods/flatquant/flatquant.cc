#include <memory>

#include "flatquant/compress/calibration.h"
#include "flatquant/compress/methods/flatquant/restarts.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/methods/training.h"

namespace flatquant::compress {
namespace {

// FlatQuant (Sun et al., ICML 2025): learned affine transforms, diagonals and
// clips, block by block.
class FlatQuant : public Method {
 public:
  bool NeedsCalibration() const override { return true; }
  bool LearnsWeights() const override { return true; }
  bool HasRandomStarts() const override { return true; }

  int64_t StepsPerBlock(const QuantizeOptions& options, int64_t windows) const override {
    return options.restarts * TrainingSteps(TrainingOptionsOf(options), windows);
  }

  BlockParameters Choose(const BlockTask& task, BlockReport* report) const override {
    const int starts = task.options.restarts;
    if (starts == 1) return TrainStart(task, 0, report);
    return BestStart(
        starts,
        [&task](int start) {
          TrainedStart trained;
          trained.parameters = TrainStart(task, start, &trained.losses);
          trained.loss = SelectionLoss(task, trained.parameters);
          return trained;
        },
        report);
  }
};

}  // namespace

std::unique_ptr<Method> MakeFlatQuant() { return std::make_unique<FlatQuant>(); }

}  // namespace flatquant::compress
