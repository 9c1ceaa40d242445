#include "flatquant/compress/methods/flatquant/restarts.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <set>
#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/compress/calibration.h"
#include "flatquant/compress/export_transforms.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/flatquant/initial_parameters.h"
#include "flatquant/compress/methods/training.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant::compress {
namespace {

using ::testing::ElementsAre;
using testing::ErrorName;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using Weights = QuantizeOptions::Weights;

const at::Device kCpu(at::kCPU);
constexpr double kInfinity = std::numeric_limits<double>::infinity();

TEST(StartRng, DrawsOtherNumbersForEverySeedBlockAndStart) {
  std::set<uint64_t> first;
  for (uint64_t seed = 0; seed < 4; ++seed) {
    for (int64_t layer = 0; layer < 8; ++layer) {
      for (int start = 0; start < 16; ++start) {
        first.insert(StartRng(seed, layer, start).Next());
        EXPECT_EQ(StartRng(seed, layer, start).Next(), StartRng(seed, layer, start).Next());
      }
    }
  }
  EXPECT_EQ(first.size(), 4u * 8 * 16);
}

TrainedStart Start(int number, double loss) {
  TrainedStart start;
  start.parameters.k_clip.max = at::full({1}, number);
  start.losses.loss_before = 10 * loss;
  start.losses.loss_after = 2 * loss;
  start.loss = loss;
  return start;
}

[[noreturn]] void Diverge() { throw Error("calibration.diverged", "test", "", ""); }

TEST(BestStart, KeepsTheEarliestOfTheBest) {
  const std::vector<double> losses = {3, 1, 1, 2};
  BlockReport report;
  const auto train = [&](int k) { return Start(k, losses[static_cast<size_t>(k)]); };
  const BlockParameters kept = BestStart(4, train, &report);
  EXPECT_EQ(kept.k_clip.max.item<float>(), 1);
  EXPECT_EQ(report.chosen_start, 1);
  EXPECT_EQ(report.loss_before, 10);
  EXPECT_EQ(report.loss_after, 2);
  EXPECT_THAT(report.start_losses, ElementsAre(3, 1, 1, 2));
}

TEST(BestStart, LeavesOutStartsThatDivergeUnlessAllDo) {
  BlockReport report;
  const auto train = [](int k) { return k == 1 ? Start(k, 5) : (Diverge(), TrainedStart()); };
  EXPECT_EQ(BestStart(3, train, &report).k_clip.max.item<float>(), 1);
  EXPECT_EQ(report.chosen_start, 1);
  EXPECT_THAT(report.start_losses, ElementsAre(kInfinity, 5, kInfinity));

  int calls = 0;
  const auto diverge = [&](int) -> TrainedStart { return (++calls, Diverge(), TrainedStart()); };
  EXPECT_EQ(ErrorName([&] { BestStart(3, diverge, &report); }), "calibration.diverged");
  EXPECT_EQ(calls, 3);
  const auto fail = [&](int) -> TrainedStart { throw Error("test.other", "", "", ""); };
  EXPECT_EQ(ErrorName([&] { BestStart(3, fail, &report); }), "test.other");
}

TEST(BestStart, HoldsNoMoreThanTheBest) {
  using Weak = c10::weak_intrusive_ptr<c10::TensorImpl, c10::UndefinedTensorImpl>;
  const std::vector<double> losses = {2, 3, 1, 4, 5};
  std::vector<Weak> made;
  const auto held = [&made] {
    return std::count_if(made.begin(), made.end(), [](const Weak& w) { return !w.expired(); });
  };
  BlockReport report;
  const BlockParameters kept = BestStart(
      5,
      [&](int k) {
        EXPECT_EQ(held(), k == 0 ? 0 : 1) << k;
        TrainedStart start = Start(k, losses[static_cast<size_t>(k)]);
        made.emplace_back(start.parameters.k_clip.max.getIntrusivePtr());
        return start;
      },
      &report);
  EXPECT_EQ(held(), 1);
  EXPECT_EQ(kept.k_clip.max.item<float>(), 2);
}

bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

// Blocks trained through Quantize, and each of their starts by hand.
class RestartsTest : public ::testing::Test {
 protected:
  RestartsTest()
      : model_(SourceModel::Open(WriteTinyModel(config_, 1))),
        windows_(RandomWindows(config_, 6, 16, 2)),
        stream_(model_, windows_, kCpu) {
    options_.epochs = 2;
    options_.batch = 2;
    options_.threads = 1;
    options_.amp = QuantizeOptions::Amp::kF32;
    SetOpThreads(options_.threads);
  }

  PackedModel Quantize(QuantizeReport* report) const {
    return flatquant::Quantize(model_, options_, windows_, report);
  }

  BlockTask TaskOf(int64_t layer, const BlockWeights& weights) const {
    return {config_, options_, layer, weights, &stream_, Amp::kOff, kCpu, {}};
  }

  // Whether block `layer` of the model is what these parameters give.
  bool IsMadeOf(const PackedModel& packed, int64_t layer, const BlockWeights& weights,
                const BlockParameters& trained) const {
    at::NoGradGuard no_grad;
    const BlockParameters parameters = AsStored(trained);
    bool same = true;
    const auto transforms = TransformTensors(layer, parameters);
    for (const auto& [name, tensor] : *transforms) {
      same &= SameBytes(packed.transforms->at(name), tensor);
    }
    const BlockTensors folded = Fold(config_, weights, parameters, at::kDouble);
    const PackedBlock block =
        PackBlock(folded, weights, RoundWeights(folded, parameters, options_.scheme), parameters,
                  options_.scheme);
    for (const Linear which : kLinears) {
      const PackedLinear& actual = packed.blocks[static_cast<size_t>(layer)].linear(which);
      same &= SameBytes(actual.weight, block.linear(which).weight);
      same &= SameBytes(actual.scale, block.linear(which).scale);
    }
    return same;
  }

  const ModelConfig config_ = TinyLlama();
  SourceModel model_;
  TokenWindows windows_;
  ResidualStream stream_;
  QuantizeOptions options_;
};

TEST_F(RestartsTest, TheModelIsMadeOfTheStartsOfLeastLoss) {
  std::set<int64_t> chosen;
  options_.restarts = 3;
  for (const Weights method : {Weights::kRtn, Weights::kLearned}) {
    options_.weights = method;
    for (const uint64_t seed : {0, 1}) {
      options_.seed = seed;
      QuantizeReport report;
      const PackedModel packed = Quantize(&report);
      EXPECT_THAT(packed.provenance.at("calibration"), HasSubstr(", best of 3 starts"));
      stream_ = ResidualStream(model_, windows_, kCpu);
      for (int64_t layer = 0; layer < config_.layers; ++layer) {
        const BlockWeights weights = LoadBlockWeights(model_, layer, kCpu);
        stream_.RunBlock(weights, options_.batch);
        const BlockTask task = TaskOf(layer, weights);
        const BlockReport& block = report.blocks[static_cast<size_t>(layer)];
        ASSERT_EQ(block.start_losses.size(), 3u);
        const auto best = std::min_element(block.start_losses.begin(), block.start_losses.end());
        EXPECT_EQ(block.chosen_start, best - block.start_losses.begin());
        for (int start = 0; start < 3; ++start) {
          BlockReport losses;
          const BlockParameters parameters = TrainStart(task, start, &losses);
          const bool is_chosen = start == block.chosen_start;
          EXPECT_EQ(SelectionLoss(task, parameters), block.start_losses[start]);
          EXPECT_EQ(losses.loss_after == block.loss_after, is_chosen);
          EXPECT_EQ(IsMadeOf(packed, layer, weights, parameters), is_chosen) << start;
        }
        chosen.insert(block.chosen_start);
        stream_.Advance();
      }
    }
  }
  // Of eight blocks: the comparison above says little where the first is always the best.
  EXPECT_GT(chosen.size(), 1u);
}

// The draws of versions without restarts, which --restarts 1 repeats.
TEST_F(RestartsTest, OneStartIsWhatItWasBefore) {
  options_.seed = 5;
  QuantizeReport report;
  const PackedModel packed = Quantize(&report);
  for (int64_t layer = 0; layer < config_.layers; ++layer) {
    const BlockWeights weights = LoadBlockWeights(model_, layer, kCpu);
    stream_.RunBlock(weights, options_.batch);
    const BlockTask task = TaskOf(layer, weights);
    Rng rng(5 * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(layer));
    const BlockParameters parameters = InitialParameters(task, rng);
    TrainingOptions training = TrainingOptionsOf(options_);
    training.seed = rng.Next();
    const TrainingResult result =
        TrainBlock(config_, weights, options_.scheme, training, stream_, parameters, {});
    EXPECT_EQ(report.blocks[static_cast<size_t>(layer)].loss_after, result.loss_after);
    EXPECT_TRUE(IsMadeOf(packed, layer, weights, parameters));
    stream_.Advance();
  }
  for (const BlockReport& block : report.blocks) EXPECT_THAT(block.start_losses, IsEmpty());
  EXPECT_THAT(packed.provenance.at("calibration"), Not(HasSubstr("starts")));
  const std::string json = ReportJson(report, packed.provenance);
  EXPECT_THAT(json, Not(HasSubstr("start_losses")));
  EXPECT_THAT(json, Not(HasSubstr("restarts")));
}

TEST_F(RestartsTest, EveryStartsStepsAreProgress) {
  const BlockWeights weights = LoadBlockWeights(model_, 0, kCpu);
  stream_.RunBlock(weights, options_.batch);
  const auto method = MakeMethod("flatquant");
  for (const int restarts : {1, 3}) {
    options_.restarts = restarts;
    BlockTask task = TaskOf(0, weights);
    int64_t steps = 0;
    task.on_step = [&steps] { ++steps; };
    BlockReport report;
    method->Choose(task, &report);
    EXPECT_EQ(steps, restarts * 2 * 3);  // epochs, batches
    EXPECT_EQ(method->StepsPerBlock(options_, windows_.count), steps);
  }
}

}  // namespace
}  // namespace flatquant::compress
