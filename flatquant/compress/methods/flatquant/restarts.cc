#include "flatquant/compress/methods/flatquant/restarts.h"

#include <limits>
#include <optional>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/compress/methods/flatquant/initial_parameters.h"
#include "flatquant/compress/methods/training.h"

namespace flatquant::compress {

Rng StartRng(uint64_t seed, int64_t layer, int start) {
  const auto block = static_cast<uint64_t>(layer);
  if (start == 0) return Rng(seed * 0x9e3779b97f4a7c15u + block);
  // Each number is mixed before the next is added, so that no two triples meet.
  const uint64_t of_block = Rng(Rng(seed).Next() + block).Next();
  return Rng(of_block + static_cast<uint64_t>(start));
}

BlockParameters TrainStart(const BlockTask& task, int start, BlockReport* report) {
  Rng rng = StartRng(task.options.seed, task.layer, start);
  BlockParameters parameters = InitialParameters(task, rng);
  if (task.options.LearnsWeights()) AddWeightCorrections(task.weights, &parameters);
  Train(task, rng.Next(), parameters, report);
  return parameters;
}

BlockParameters BestStart(int count, const std::function<TrainedStart(int start)>& train,
                          BlockReport* report) {
  std::optional<TrainedStart> best;
  for (int start = 0; start < count; ++start) {
    report->start_losses.push_back(std::numeric_limits<double>::infinity());
    try {
      TrainedStart trained = train(start);
      report->start_losses.back() = trained.loss;
      if (best && best->loss <= trained.loss) continue;
      best = std::move(trained);
      report->chosen_start = start;
    } catch (const Error& error) {
      const bool is_hopeless = !best && start + 1 == count;
      if (error.name() != "calibration.diverged" || is_hopeless) throw;
    }
  }
  FLATQUANT_CHECK(best.has_value());
  report->loss_before = best->losses.loss_before;
  report->loss_after = best->losses.loss_after;
  return std::move(best->parameters);
}

}  // namespace flatquant::compress
