#include "flatquant/compress/ops/kron.h"

#include <ATen/ATen.h>

#include <cmath>

#include "flatquant/compress/ops/op_testing.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

struct Case {
  std::vector<int64_t> rows;  // x is [rows..., left * right]
  int64_t left, right;
  bool has_left, has_right;
};

// The operation on floats against its composite on doubles: products of standard
// normal values, summed over `terms` of them, so errors stay below a few standard
// deviations sqrt(terms) of one rounding times the values' size.
TEST(KronTransform, EqualsTheCompositeInDouble) {
  // More than one tile per thread (tiles hold 32768 floats), and tails.
  const std::vector<Case> cases = {{{3}, 1, 5, false, true},      {{3}, 5, 1, true, false},
                                   {{2, 7}, 4, 6, true, true},    {{201}, 16, 33, true, true},
                                   {{2, 90}, 8, 64, true, false}, {{2, 90, 3}, 1, 64, false, true},
                                   {{1}, 200, 170, true, true},   {{130}, 4, 64, true, false}};
  const int before = OpThreads();
  for (const int threads : {1, 3}) {
    SetOpThreads(threads);
    for (const Case& c : cases) {
      std::vector<int64_t> sizes = c.rows;
      sizes.push_back(c.left * c.right);
      const at::Tensor values = RandomNormal(sizes, 1), g = RandomNormal(sizes, 2);
      const at::Tensor p_left = RandomNormal({c.left, c.left}, 3) / std::sqrt(c.left);
      const at::Tensor p_right = RandomNormal({c.right, c.right}, 4) / std::sqrt(c.right);
      std::vector<at::Tensor> outputs;
      std::vector<std::vector<at::Tensor>> gradients;
      for (const auto dtype : {at::kFloat, at::kDouble}) {
        std::vector<at::Tensor> inputs = {Leaf(values, dtype)};
        at::Tensor left, right;
        if (c.has_left) inputs.push_back(left = Leaf(p_left, dtype));
        if (c.has_right) inputs.push_back(right = Leaf(p_right, dtype));
        outputs.push_back(KronTransform(inputs[0], left, right));
        gradients.push_back(Gradients({outputs.back()}, inputs, {g.to(dtype)}));
      }
      const std::string name = std::to_string(c.left) + "x" + std::to_string(c.right);
      const double unit = 16 * kFloatEpsilon;
      ExpectClose(outputs[0], outputs[1], unit * MaxAbs(outputs[1]), name + " y");
      const double tokens = static_cast<double>(values.numel()) / (c.left * c.right);
      for (size_t i = 0; i < gradients[0].size(); ++i) {
        const double terms = i == 0 ? 1 : std::sqrt(tokens * std::max(c.left, c.right));
        ExpectClose(gradients[0][i], gradients[1][i], unit * terms * MaxAbs(outputs[1]) * 2,
                    name + " gradient " + std::to_string(i));
      }
    }
  }
  SetOpThreads(before);
}

TEST(KronTransform, SkipsGradientsThatNobodyAsksFor) {
  const at::Tensor x = RandomNormal({50, 24}, 1), g = RandomNormal({50, 24}, 2);
  const at::Tensor left = Leaf(RandomNormal({4, 4}, 3)), right = Leaf(RandomNormal({6, 6}, 4));
  const auto both = Gradients({KronTransform(x, left, right)}, {left, right}, {g});
  const auto only_right = Gradients({KronTransform(x, left.detach(), right)}, {right}, {g});
  const auto only_left = Gradients({KronTransform(x, left, right.detach())}, {left}, {g});
  EXPECT_TRUE(at::equal(both[1], only_right[0]));
  EXPECT_TRUE(at::equal(both[0], only_left[0]));
}

TEST(KronTransform, IsTheKroneckerProduct) {
  const at::Tensor x = RandomNormal({5, 12}, 1), left = RandomNormal({3, 3}, 2),
                   right = RandomNormal({4, 4}, 3);
  ExpectClose(KronTransform(x, left, right), at::matmul(x, at::kron(left, right)),
              100 * kFloatEpsilon, "y");
}

}  // namespace
}  // namespace flatquant::compress
