#include "flatquant/compress/ops/linear.h"

#include <ATen/ATen.h>

#include "flatquant/compress/ops/gemm.h"
#include "flatquant/compress/ops/op_testing.h"

namespace flatquant::compress {
namespace {

// What amp rounds operands to, as doubles.
at::Tensor Rounded(const at::Tensor& t, Amp amp) {
  return (amp == Amp::kBF16 && GemmTakesBFloat16() ? t.detach().to(at::kBFloat16) : t.detach())
      .to(at::kDouble);
}

TEST(Gemm, EqualsLibTorchForEveryLayout) {
  for (const bool transpose_a : {false, true}) {
    for (const bool transpose_b : {false, true}) {
      for (const bool accumulate : {false, true}) {
        const int64_t m = 13, n = 7, k = 29;
        const at::Tensor a = RandomNormal({transpose_a ? k : m, transpose_a ? m : k}, 1);
        const at::Tensor b = RandomNormal({transpose_b ? n : k, transpose_b ? k : n}, 2);
        const at::Tensor start = RandomNormal({m, n + 3}, 3), c = start.clone();
        GemmShape shape;
        shape.m = m;
        shape.n = n;
        shape.k = k;
        shape.a_stride = a.size(1);
        shape.b_stride = b.size(1);
        shape.c_stride = n + 3;
        shape.transpose_a = transpose_a;
        shape.transpose_b = transpose_b;
        shape.accumulate = accumulate;
        Gemm gemm(shape);
        gemm(a.data_ptr(), b.data_ptr(), c.data_ptr());
        at::Tensor expected = start.to(at::kDouble);
        const at::Tensor product = at::matmul((transpose_a ? a.t() : a).to(at::kDouble),
                                              (transpose_b ? b.t() : b).to(at::kDouble));
        const at::Tensor block = expected.slice(1, 0, n);
        block.copy_(accumulate ? block + product : product);
        ExpectClose(c, expected, 2 * k * kFloatEpsilon * MaxAbs(a) * MaxAbs(b) + 1e-6, "c");
      }
    }
  }
}

TEST(LinearGroup, EqualsProductsOfItsOperandsInDouble) {
  const int64_t in = 37;
  for (const Amp amp : {Amp::kOff, Amp::kBF16}) {
    const at::Tensor x = Leaf(RandomNormal({2, 9, in}, 1));
    const std::vector<at::Tensor> w = {Leaf(RandomNormal({24, in}, 2)),
                                       Leaf(RandomNormal({5, in}, 3))};
    const at::Tensor bias = Leaf(RandomNormal({5}, 4));
    const std::vector<at::Tensor> g = {RandomNormal({2, 9, 24}, 5), RandomNormal({2, 9, 5}, 6)};
    const std::vector<at::Tensor> y = LinearGroup(x, w, {at::Tensor(), bias}, amp);
    // Sums of up to `terms` products of standard normal values, in float.
    const auto tolerance = [](double terms) { return terms * kFloatEpsilon * 16; };
    for (size_t i = 0; i < 2; ++i) {
      at::Tensor expected = at::matmul(Rounded(x, amp), Rounded(w[i], amp).t());
      if (i == 1) expected = expected + bias.detach();
      ASSERT_EQ(y[i].scalar_type(), at::kFloat);
      ExpectClose(y[i], expected, tolerance(in), "y");
    }
    const std::vector<at::Tensor> gradients = Gradients(y, {x, w[0], w[1], bias}, g);
    const at::Tensor dx = at::matmul(Rounded(g[0], amp), Rounded(w[0], amp)) +
                          at::matmul(Rounded(g[1], amp), Rounded(w[1], amp));
    ExpectClose(gradients[0], dx, tolerance(24 + 5), "dx");
    for (size_t i = 0; i < 2; ++i) {
      const at::Tensor dw =
          at::matmul(Rounded(g[i], amp).reshape({18, -1}).t(), Rounded(x, amp).reshape({18, in}));
      ExpectClose(gradients[i + 1], dw, tolerance(18), "dw");
    }
    ExpectClose(gradients[3], g[1].reshape({18, 5}).sum(0), tolerance(18), "dbias");
  }
}

// Gradients of bfloat16 inputs are bfloat16: sums in float, rounded once to 8
// significant bits.
TEST(LinearGroup, TakesRoundedInputs) {
  const at::Tensor x = Leaf(RandomNormal({6, 16}, 1), at::kBFloat16);
  const std::vector<at::Tensor> w = {Leaf(RandomNormal({8, 16}, 2), at::kBFloat16),
                                     Leaf(RandomNormal({3, 16}, 3), at::kBFloat16)};
  const std::vector<at::Tensor> g = {RandomNormal({6, 8}, 4), RandomNormal({6, 3}, 5)};
  std::vector<at::Tensor> dx;
  for (size_t i = 0; i < 2; ++i) {
    dx.push_back(at::matmul(Rounded(g[i], Amp::kBF16), Rounded(w[i], Amp::kBF16)));
    const at::Tensor y = LinearOp(x, w[i], {}, Amp::kBF16);
    const at::Tensor exact = at::matmul(Rounded(x, Amp::kBF16), Rounded(w[i], Amp::kBF16).t());
    ExpectClose(y, exact, 16 * 16 * kFloatEpsilon, "y");
    const auto gradients = Gradients({y}, {x, w[i]}, {g[i]});
    ASSERT_EQ(gradients[0].scalar_type(), at::kBFloat16);
    ASSERT_EQ(gradients[1].scalar_type(), at::kBFloat16);
    ExpectClose(gradients[0], dx[i], MaxAbs(dx[i]) * 0x1p-8, "dx");
    const at::Tensor dw = at::matmul(Rounded(g[i], Amp::kBF16).t(), Rounded(x, Amp::kBF16));
    ExpectClose(gradients[1], dw, MaxAbs(dw) * 0x1p-8, "dw");
  }
  const at::Tensor both = Gradients(LinearGroup(x, w, {}, Amp::kBF16), {x}, g)[0];
  ASSERT_EQ(both.scalar_type(), at::kBFloat16);
  ExpectClose(both, dx[0] + dx[1], MaxAbs(dx[0] + dx[1]) * 0x1p-8, "dx of both");
}

TEST(LinearOp, UnusedOutputsCostNothing) {
  const at::Tensor x = Leaf(RandomNormal({4, 8}, 1));
  const std::vector<at::Tensor> w = {Leaf(RandomNormal({3, 8}, 2)), Leaf(RandomNormal({2, 8}, 3))};
  const std::vector<at::Tensor> y = LinearGroup(x, w, {}, Amp::kOff);
  const at::Tensor g = RandomNormal({4, 2}, 4);
  ExpectClose(Gradients({y[1]}, {x}, {g})[0],
              at::matmul(g.to(at::kDouble), Rounded(w[1], Amp::kOff)), 16 * 8 * kFloatEpsilon,
              "dx");
}

}  // namespace
}  // namespace flatquant::compress
