#include <memory>

#include "flatquant/compress/calibration.h"
#include "flatquant/compress/methods/flatquant/initial_parameters.h"
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

  int64_t StepsPerBlock(const QuantizeOptions& options, int64_t windows) const override {
    return TrainingSteps(TrainingOptionsOf(options), windows);
  }

  BlockParameters Choose(const BlockTask& task, BlockReport* report) const override {
    // Each block draws its own numbers, whatever blocks come before it.
    Rng rng(task.options.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(task.layer));
    BlockParameters parameters = InitialParameters(task, rng);
    if (task.options.LearnsWeights()) AddWeightCorrections(task.weights, &parameters);
    Train(task, rng.Next(), parameters, report);
    return parameters;
  }
};

}  // namespace

std::unique_ptr<Method> MakeFlatQuant() { return std::make_unique<FlatQuant>(); }

}  // namespace flatquant::compress
