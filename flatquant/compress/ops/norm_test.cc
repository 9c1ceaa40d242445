#include "flatquant/compress/ops/norm.h"

#include <ATen/ATen.h>

#include <cmath>

#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/exp.h"
#include "flatquant/compress/ops/op_testing.h"

namespace flatquant::compress {
namespace {

TEST(FastExp, IsExactToItsStatedError) {
  for (double x = -87; x <= 87; x += 0.00137) {
    const double exact = std::exp(static_cast<double>(static_cast<float>(x)));
    const double error = std::abs(FastExp(static_cast<float>(x)) - exact) / exact;
    ASSERT_LE(error, 3e-7) << x;
  }
  EXPECT_GT(FastExp(-1e30f), 0);
  EXPECT_TRUE(std::isfinite(FastExp(1e30f)));
}

// The operation on floats against its composite on doubles. Relative tolerance:
// sums of n terms, a few roundings each.
TEST(RmsNorm, EqualsTheCompositeInDouble) {
  for (const int64_t n : {1, 7, 64, 257}) {
    for (const bool weighted : {false, true}) {
      const at::Tensor values = RandomNormal({3, 11, n}, 1), scale = RandomNormal({n}, 2);
      const at::Tensor g = RandomNormal({3, 11, n}, 3);
      std::vector<at::Tensor> outputs;
      std::vector<std::vector<at::Tensor>> gradients;
      for (const auto dtype : {at::kFloat, at::kDouble}) {
        const at::Tensor x = Leaf(values, dtype), w = Leaf(scale, dtype);
        const at::Tensor y = RmsNorm(x, weighted ? w : at::Tensor(), 1e-5);
        outputs.push_back(y);
        gradients.push_back(weighted ? Gradients({y}, {x, w}, {g.to(dtype)})
                                     : Gradients({y}, {x}, {g.to(dtype)}));
      }
      const double roundings = (static_cast<double>(n) + 10) * kFloatEpsilon;
      ExpectClose(outputs[0], outputs[1], roundings * MaxAbs(outputs[1]), "y");
      // |x| can be small, so 1/rms multiplies the gradient's error.
      const double steepest = 1 / std::sqrt(1e-5 + values.pow(2).mean(-1).min().item<double>());
      ExpectClose(gradients[0][0], gradients[1][0],
                  4 * roundings * steepest * MaxAbs(g) * std::max(1.0, MaxAbs(scale)), "dx");
      if (weighted) {
        ExpectClose(gradients[0][1], gradients[1][1],
                    33 * roundings * MaxAbs(g) * MaxAbs(outputs[1] / scale), "dw");
      }
    }
  }
}

TEST(Swiglu, EqualsTheCompositeInDouble) {
  const at::Tensor a = RandomNormal({13, 77}, 1) * 5, b = RandomNormal({13, 77}, 2);
  const at::Tensor g = RandomNormal({13, 77}, 3);
  std::vector<at::Tensor> outputs;
  std::vector<std::vector<at::Tensor>> gradients;
  for (const auto dtype : {at::kFloat, at::kDouble}) {
    const at::Tensor gate = Leaf(a, dtype), up = Leaf(b, dtype);
    outputs.push_back(Swiglu(gate, up));
    gradients.push_back(Gradients({outputs.back()}, {gate, up}, {g.to(dtype)}));
  }
  // The exponential is good to 3e-7; everything else is a few roundings.
  const double tolerance = 1e-6 * MaxAbs(a) * MaxAbs(b) * MaxAbs(g);
  ExpectClose(outputs[0], outputs[1], tolerance, "y");
  ExpectClose(gradients[0][0], gradients[1][0], tolerance, "dgate");
  ExpectClose(gradients[0][1], gradients[1][1], tolerance, "dup");
}

TEST(Rope, EqualsTheCompositeAndTurnsBack) {
  for (const int64_t half : {1, 5, 32}) {
    const at::Tensor angle = RandomNormal({9, half}, 1) * 3;
    const at::Tensor values = RandomNormal({2, 9, 3, 2 * half}, 2);
    const at::Tensor g = RandomNormal({2, 9, 3, 2 * half}, 3);
    std::vector<at::Tensor> outputs, gradients;
    for (const auto dtype : {at::kFloat, at::kDouble}) {
      const at::Tensor x = Leaf(values, dtype);
      outputs.push_back(Rope(x, angle.cos().to(dtype), angle.sin().to(dtype)));
      gradients.push_back(Gradients({outputs.back()}, {x}, {g.to(dtype)})[0]);
    }
    ExpectClose(outputs[0], outputs[1], 4 * kFloatEpsilon * MaxAbs(values), "y");
    ExpectClose(gradients[0], gradients[1], 4 * kFloatEpsilon * MaxAbs(g), "dx");
    const at::Tensor back = Rope(outputs[0].detach(), angle.cos(), -angle.sin());
    ExpectClose(back, values, 16 * kFloatEpsilon * MaxAbs(values), "turned back");
  }
}

}  // namespace
}  // namespace flatquant::compress
