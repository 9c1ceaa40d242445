#include "flatquant/compress/ops/fake_quant.h"

#include <ATen/ATen.h>

#include <cmath>

#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/op_testing.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

enum class Kind { kActivation, kKv, kWeight };

at::Tensor Fused(Kind kind, const at::Tensor& x, const at::Tensor& max, const at::Tensor& min,
                 int bits, at::ScalarType dtype = at::kFloat) {
  if (kind == Kind::kActivation) return FakeQuantActivation(x, max, min, bits, dtype);
  if (kind == Kind::kKv) return FakeQuantKv(x, max, min, bits, dtype);
  return FakeQuantWeight(x, max, min, bits, dtype);
}

at::Tensor Composite(Kind kind, const at::Tensor& x, const at::Tensor& max, const at::Tensor& min,
                     int bits) {
  if (kind == Kind::kActivation) return composite::FakeQuantActivation(x, max, min, bits);
  if (kind == Kind::kKv) return composite::FakeQuantKv(x, max, min, bits);
  return composite::FakeQuantWeight(x, max, min, bits);
}

struct Case {
  Kind kind;
  std::vector<int64_t> sizes;
  int bits;
  double logit;  // 0.5 clips hard, so that many elements leave the grid
};

std::vector<Case> Cases() {
  std::vector<Case> cases;
  for (const Kind kind : {Kind::kActivation, Kind::kKv, Kind::kWeight}) {
    for (const int bits : {2, 3, 4, 8}) {
      for (const double logit : {4.0, 0.5}) {
        cases.push_back({kind, {37, 67}, bits, logit});
        cases.push_back({kind, {3, 128}, bits, logit});
        if (kind != Kind::kWeight) cases.push_back({kind, {2, 3, 5, 64}, bits, logit});
      }
    }
  }
  return cases;
}

// Inputs of a case: rows of different spread and offset, one of zeros, one
// without negative values.
at::Tensor Rows(const Case& c, uint64_t seed) {
  at::Tensor x = RandomNormal(c.sizes, seed).reshape({-1, c.sizes.back()});
  x = x * (RandomNormal({x.size(0), 1}, seed + 1) * 0.5).exp() +
      0.5 * RandomNormal({x.size(0), 1}, seed + 2);
  x[0].zero_();
  if (x.size(0) > 1) x[1].abs_();
  return x.reshape(c.sizes);
}

at::Tensor Logits(const Case& c, uint64_t seed) {
  const int64_t rows = c.sizes[0];
  const at::Tensor noise = RandomNormal({rows, 1}, seed) * 0.3 + c.logit;
  return c.kind == Kind::kWeight ? noise : noise[0];
}

TEST(FakeQuant, EqualsTheCompositeForwardBitForBit) {
  for (const Case& c : Cases()) {
    const at::Tensor x = Rows(c, 11), max = Logits(c, 12), min = Logits(c, 13);
    EXPECT_TRUE(
        at::equal(Fused(c.kind, x, max, min, c.bits), Composite(c.kind, x, max, min, c.bits)))
        << static_cast<int>(c.kind) << " bits " << c.bits << " sizes " << x.sizes();
    EXPECT_TRUE(at::equal(Fused(c.kind, x, max, min, c.bits, at::kBFloat16),
                          Composite(c.kind, x, max, min, c.bits).to(at::kBFloat16)));
  }
}

TEST(FakeQuant, WithoutClipsRoundsToNearest) {
  for (const Kind kind : {Kind::kActivation, Kind::kKv, Kind::kWeight}) {
    const at::Tensor x = RandomNormal({9, 33}, 5);
    EXPECT_TRUE(at::equal(Fused(kind, x, {}, {}, 4), Composite(kind, x, {}, {}, 4)));
  }
  const at::Tensor x = at::tensor({-7.0, -3.4, 0.5, 1.5, 7.0}, at::kFloat).reshape({1, 5});
  const at::Tensor expected = at::tensor({-7.0, -3.0, 0.0, 2.0, 7.0}, at::kFloat).reshape({1, 5});
  EXPECT_TRUE(at::equal(FakeQuantActivation(x, {}, {}, 4), expected));
}

TEST(FakeQuant, SixteenBitsChangeNothing) {
  const at::Tensor x = RandomNormal({3, 8}, 1);
  EXPECT_TRUE(at::equal(FakeQuantActivation(x, {}, {}, 16), x));
  EXPECT_TRUE(at::equal(FakeQuantKv(x, {}, {}, 16), x));
  EXPECT_TRUE(at::equal(FakeQuantWeight(x, {}, {}, 16), x));
}

// The composite runs on doubles, so that the tolerance covers the fused version's
// rounding alone; no element of these fixed inputs lies so near the middle of two
// grid points that the two would round it apart.
TEST(FakeQuant, GradientsEqualTheComposites) {
  int sharp = 0, checks = 0;
  for (const Case& c : Cases()) {
    const std::string name = "kind " + std::to_string(static_cast<int>(c.kind)) + " bits " +
                             std::to_string(c.bits) + " logit " + std::to_string(c.logit) +
                             " columns " + std::to_string(c.sizes.back());
    const at::Tensor weight = RandomNormal(c.sizes, 21);
    const at::Tensor values = Rows(c, 22), max_logit = Logits(c, 23), min_logit = Logits(c, 24);
    std::vector<std::vector<at::Tensor>> gradients;
    for (const at::ScalarType dtype : {at::kFloat, at::kDouble}) {
      const at::Tensor x = Leaf(values, dtype), max = Leaf(max_logit, dtype),
                       min = Leaf(min_logit, dtype);
      const at::Tensor y = dtype == at::kFloat ? Fused(c.kind, x, max, min, c.bits)
                                               : Composite(c.kind, x, max, min, c.bits);
      gradients.push_back(Gradients({y}, {x, max, min}, {weight.to(dtype)}));
    }
    // A row's gradient to its scale sums n terms g (q - x/s), where x/s <= 2^bits
    // carries one relative rounding; independent errors grow as sqrt(n), and no
    // more than 8 standard deviations are allowed. It reaches the extreme
    // elements and clips divided by q_max or, through the clamp, as it is.
    const double n = static_cast<double>(c.sizes.back());
    const double row_error = 8 * std::sqrt(n) * kFloatEpsilon * (1 << c.bits) * MaxAbs(weight);
    // The composite's zero row spreads gradient over all its elements, which tie.
    const auto without_zero_row = [&](const at::Tensor& t) {
      return t.reshape({-1, c.sizes.back()}).slice(0, 1);
    };
    ExpectClose(without_zero_row(gradients[0][0]), without_zero_row(gradients[1][0]), row_error,
                name + " dx");
    const double rows = c.kind == Kind::kWeight ? 1 : static_cast<double>(values.numel()) / n;
    const double clip_error = std::sqrt(rows) * row_error * MaxAbs(values);
    for (const int i : {1, 2}) {
      ExpectClose(gradients[0][i], gradients[1][i], clip_error, name + (i == 1 ? " max" : " min"));
      sharp += MaxAbs(gradients[1][i]) > 10 * clip_error;
      ++checks;
    }
  }
  EXPECT_GT(2 * sharp, checks) << "most clip gradients drown in the tolerance";
}

TEST(FakeQuant, GradientOfAZeroRowPassesStraightThrough) {
  for (const Kind kind : {Kind::kActivation, Kind::kKv, Kind::kWeight}) {
    const at::Tensor x = Leaf(at::zeros({2, 8}, at::kFloat)), g = RandomNormal({2, 8}, 3);
    EXPECT_TRUE(at::equal(Gradients({Fused(kind, x, {}, {}, 4)}, {x}, {g})[0], g));
  }
}

TEST(FakeQuant, IsTheSameForAnyThreadCount) {
  const int before = OpThreads();
  std::vector<at::Tensor> first;
  for (const int threads : {1, 2}) {
    SetOpThreads(threads);
    const at::Tensor x = Leaf(RandomNormal({301, 257}, 7));
    const at::Tensor max = Leaf(at::full({1}, 2.0, at::kFloat));
    const at::Tensor min = Leaf(at::full({1}, 2.5, at::kFloat));
    const at::Tensor y = FakeQuantActivation(x, max, min, 4);
    std::vector<at::Tensor> now = Gradients({y}, {x, max, min}, {RandomNormal({301, 257}, 8)});
    now.push_back(y.detach());
    if (first.empty()) first = now;
    for (size_t i = 0; i < now.size(); ++i) EXPECT_TRUE(at::equal(now[i], first[i])) << i;
  }
  SetOpThreads(before);
}

TEST(FakeQuant, TakesRoundedGradients) {
  for (const Kind kind : {Kind::kActivation, Kind::kKv, Kind::kWeight}) {
    const at::Tensor x = Leaf(RandomNormal({7, 37}, 1)),
                     clip = Leaf(at::full({7, 1}, 1.0, at::kFloat));
    const at::Tensor logit = kind == Kind::kWeight ? clip : clip.select(0, 0);
    const at::Tensor g = RandomNormal({7, 37}, 2).to(at::kBFloat16);
    const auto rounded =
        Gradients({Fused(kind, x, logit, logit, 4, at::kBFloat16)}, {x, clip}, {g});
    const auto floats = Gradients({Fused(kind, x, logit, logit, 4)}, {x, clip}, {g.to(at::kFloat)});
    EXPECT_TRUE(at::equal(rounded[0], floats[0]));
    EXPECT_TRUE(at::equal(rounded[1], floats[1]));
  }
}

TEST(FakeQuant, AcceptsStridedInputAndGradient) {
  const at::Tensor base = RandomNormal({6, 2, 16}, 9);
  const at::Tensor x = base.select(1, 1).detach().set_requires_grad(true);
  const at::Tensor copy = Leaf(base.select(1, 1).contiguous());
  const at::Tensor g = RandomNormal({16, 6}, 10).t();
  EXPECT_TRUE(at::equal(Gradients({FakeQuantActivation(x, {}, {}, 4)}, {x}, {g})[0],
                        Gradients({FakeQuantActivation(copy, {}, {}, 4)}, {copy}, {g})[0]));
}

}  // namespace
}  // namespace flatquant::compress
