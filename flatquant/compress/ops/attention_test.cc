#include "flatquant/compress/ops/attention.h"

#include <ATen/ATen.h>

#include <cmath>

#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/op_testing.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

struct Case {
  int64_t batch, tokens, heads, kv_heads, dim, window;
};

std::vector<Case> Cases() {
  return {{1, 1, 1, 1, 8, 0},      {2, 17, 4, 2, 16, 0},   {1, 128, 2, 2, 64, 0},
          {2, 129, 4, 1, 24, 0},   {1, 300, 6, 2, 20, 0},  {1, 300, 2, 1, 16, 5},
          {1, 300, 2, 1, 16, 128}, {2, 140, 2, 2, 16, 131}};
}

std::string Name(const Case& c) {
  return "tokens " + std::to_string(c.tokens) + " window " + std::to_string(c.window);
}

struct Result {
  at::Tensor out;
  std::vector<at::Tensor> gradients;
};

// Standard normal inputs, so logits of order 1.
Result Attend(const Case& c, at::ScalarType dtype, Amp amp) {
  const auto input = [&](int64_t heads, uint64_t seed) {
    // Values that bfloat16 holds, so that amp's rounding of inputs costs nothing.
    return Leaf(RandomNormal({c.batch, c.tokens, heads, c.dim}, seed).to(at::kBFloat16), dtype);
  };
  const at::Tensor q = input(c.heads, 1), k = input(c.kv_heads, 2), v = input(c.kv_heads, 3);
  const at::Tensor g =
      RandomNormal({c.batch, c.tokens, c.heads * c.dim}, 4).to(at::kBFloat16).to(dtype);
  Result result;
  result.out = CausalAttention(q, k, v, c.window, amp);
  result.gradients = Gradients({result.out}, {q, k, v}, {g});
  return result;
}

// Each number is a chain of sums with relative error `unit` of each term. Outputs
// average values of size 4, gradients sum up to `tokens` terms of random sign.
void ExpectEqual(const Case& c, const Result& actual, const Result& expected, double unit) {
  ExpectClose(actual.out, expected.out, 4 * unit, Name(c) + " out");
  const char* names[] = {" dq", " dk", " dv"};
  for (size_t i = 0; i < 3; ++i) {
    ExpectClose(actual.gradients[i], expected.gradients[i],
                4 * unit * std::max(1.0, MaxAbs(expected.gradients[i])), Name(c) + names[i]);
  }
}

TEST(CausalAttention, EqualsTheCompositeInDouble) {
  for (const Case& c : Cases()) {
    const double sums = std::sqrt(static_cast<double>(c.tokens * c.heads));
    ExpectEqual(c, Attend(c, at::kFloat, Amp::kOff), Attend(c, at::kDouble, Amp::kOff),
                16 * kFloatEpsilon * sums);
  }
}

// With amp, probabilities and logit gradients are rounded to 8 significant bits
// before they are summed; inputs are exact here.
TEST(CausalAttention, AmpStaysWithinItsRounding) {
  for (const Case& c : Cases()) {
    ExpectEqual(c, Attend(c, at::kFloat, Amp::kBF16), Attend(c, at::kDouble, Amp::kOff),
                4 * 0x1p-9);
  }
}

TEST(CausalAttention, IsTheSameForAnyThreadCount) {
  const Case c = {2, 200, 4, 2, 16, 0};
  const int before = OpThreads();
  SetOpThreads(1);
  const Result one = Attend(c, at::kFloat, Amp::kBF16);
  SetOpThreads(2);
  const Result two = Attend(c, at::kFloat, Amp::kBF16);
  SetOpThreads(before);
  EXPECT_TRUE(at::equal(one.out, two.out));
  for (size_t i = 0; i < 3; ++i) EXPECT_TRUE(at::equal(one.gradients[i], two.gradients[i]));
}

// A key with a huge logit must not overflow, nor drown what precedes it.
TEST(CausalAttention, SurvivesHugeLogits) {
  at::Tensor q = at::ones({1, 150, 1, 8}, at::kFloat), k = at::zeros({1, 150, 1, 8}, at::kFloat);
  const at::Tensor v = RandomNormal({1, 150, 1, 8}, 1);
  k[0][140].fill_(1e4);
  const at::Tensor out = CausalAttention(q, k, v);
  ExpectClose(out[0][149], v[0][140][0], 1e-6, "after");
  ExpectClose(out[0][139], v[0].slice(0, 0, 140).mean(0)[0], 1e-5, "before");
}

TEST(Composite, AttentionIsCausalSoftmax) {
  const at::Tensor q = RandomNormal({1, 3, 2, 4}, 1).to(at::kDouble),
                   k = RandomNormal({1, 3, 1, 4}, 2).to(at::kDouble),
                   v = RandomNormal({1, 3, 1, 4}, 3).to(at::kDouble);
  const at::Tensor out = composite::CausalAttention(q, k, v, 2, Amp::kOff);
  // Token 2 of head 1 with a window of 2 sees tokens 1 and 2.
  const at::Tensor logits = at::matmul(k[0].select(1, 0).slice(0, 1, 3), q[0][2][1]) / 2;
  const at::Tensor expected = at::matmul(logits.softmax(0), v[0].select(1, 0).slice(0, 1, 3));
  ExpectClose(out[0][2].slice(0, 4, 8), expected, 1e-12, "head 1");
}

}  // namespace
}  // namespace flatquant::compress
