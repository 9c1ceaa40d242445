#include "flatquant/compress/ops/adamw.h"

#include <ATen/ATen.h>
#include <torch/optim/adamw.h>

#include <vector>

#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/op_testing.h"

namespace flatquant::compress {
namespace {

constexpr double kDecay = 0.01;
constexpr int64_t kSteps = 20;

at::Tensor FactorsAt(int64_t t, double schedule) {
  const AdamWFactors factors = AdamWFactors::At(t, schedule);
  const std::vector<double> values = {factors.schedule, factors.mean, factors.deviation};
  return at::tensor(values, at::kDouble);
}

// Floats against the composite in double. A value takes steps of at most its rate times
// about 1 / sqrt(1 - beta2), each with some ten roundings.
TEST(AdamW, EqualsTheCompositeInDouble) {
  for (const int64_t n : {1, 17, 100001}) {
    const at::Tensor rate = at::rand({n}, at::kDouble) * 1e-2;
    std::vector<at::Tensor> ends;
    for (const auto type : {at::kFloat, at::kDouble}) {
      const at::Tensor p = RandomNormal({n}, 1).to(type), m = at::zeros({n}, type);
      const at::Tensor v = at::zeros({n}, type);
      for (int64_t t = 1; t <= kSteps; ++t) {
        const at::Tensor g = RandomNormal({n}, 10 + static_cast<uint64_t>(t)).to(type);
        AdamWStep(p, m, v, g, rate.to(type), FactorsAt(t, 1.0 / static_cast<double>(t)).to(type),
                  kDecay);
      }
      ends.push_back(p);
    }
    const double size = MaxAbs(ends[1]) + kSteps * 1e-2 * 32;
    ExpectClose(ends[0], ends[1], kSteps * 10 * kFloatEpsilon * size, "values");
  }
}

// In double, where LibTorch's optimizer rounds in another order: to a few roundings a step.
TEST(AdamW, IsLibTorchsOptimizer) {
  constexpr int64_t kSize = 50;
  constexpr double kRate = 3e-2;
  at::Tensor theirs = Leaf(RandomNormal({kSize}, 1), at::kDouble);
  const at::Tensor ours = theirs.detach().clone();
  const at::Tensor m = at::zeros_like(ours), v = at::zeros_like(ours);
  torch::optim::AdamW optimizer(std::vector<at::Tensor>{theirs},
                                torch::optim::AdamWOptions(kRate).weight_decay(kDecay));
  for (int64_t t = 1; t <= kSteps; ++t) {
    const at::Tensor g = RandomNormal({kSize}, 10 + static_cast<uint64_t>(t)).to(at::kDouble);
    theirs.mutable_grad() = g;
    optimizer.step();
    composite::AdamWStep(ours, m, v, g, at::full_like(ours, kRate), FactorsAt(t, 1.0), kDecay);
  }
  ExpectClose(ours, theirs, kSteps * 0x1p-48, "values");
}

// Against the definition's first step: m / (1 - beta1) = g and the root of
// v / (1 - beta2) is |g|, so that a value moves by its rate against the gradient's sign.
TEST(AdamW, FirstStepIsTheRateAgainstTheGradientsSign) {
  const at::Tensor p = at::full({3}, 2.0f), m = at::zeros({3}), v = at::zeros({3});
  const at::Tensor g = at::tensor(std::vector<float>{3.0f, -1e-3f, 0.0f});
  const at::Tensor rate = at::full({3}, 0.5f);
  AdamWStep(p, m, v, g, rate, FactorsAt(1, 0.1).to(at::kFloat), kDecay);
  const double shrunk = 2 * (1 - 0.05 * kDecay);
  const std::vector<double> expected = {shrunk - 0.05, shrunk + 0.05, shrunk};
  // epsilon beside the smallest gradient, 1e-8 / 1e-3.
  ExpectClose(p, at::tensor(expected, at::kDouble), 0.05 * 2e-5 + 4 * kFloatEpsilon * 2, "p");
}

}  // namespace
}  // namespace flatquant::compress
