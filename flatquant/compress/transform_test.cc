#include "flatquant/compress/transform.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/cayley.h"

namespace flatquant::compress {
namespace {

const at::Device kCpu(at::kCPU);

double MaxError(const at::Tensor& a, const at::Tensor& b) {
  return (a.detach().to(at::kDouble) - b.detach().to(at::kDouble)).abs().max().item<double>();
}

// Moves every parameter away from its start.
void Perturb(const InvertibleMatrix& matrix, double size, Rng& rng) {
  at::NoGradGuard no_grad;
  for (at::Tensor parameter : matrix.parameters()) {
    float* values = parameter.data_ptr<float>();
    for (int64_t i = 0; i < parameter.numel(); ++i) {
      values[i] += static_cast<float>(size * rng.Normal());
    }
  }
}

// Matrices whose largest singular value is `norm`. Tolerance: a few products of n terms
// each, whose size is that of the inverse, at most 1.
TEST(InverseByIteration, EqualsTheInverse) {
  for (const int64_t n : {1, 2, 7, 64, 86, 128}) {
    for (const double norm : {0.0, 1e-3, 0.5, 3.0, 10.0}) {
      Rng rng(static_cast<uint64_t>(n));
      at::Tensor values = at::empty({2, n, n}, at::kDouble);
      for (int64_t i = 0; i < values.numel(); ++i) values.data_ptr<double>()[i] = rng.Normal();
      const at::Tensor skew = values - values.transpose(1, 2);
      const at::Tensor size = at::linalg_matrix_norm(skew, 2, {1, 2}, /*keepdim=*/true);
      const at::Tensor scaled = (skew * (norm / size.clamp_min(1e-30))).to(at::kFloat);
      const at::Tensor expected = InverseOfIdentityPlus(scaled.to(at::kDouble));
      const double tolerance = 0x1p-24 * (static_cast<double>(n) + 10) * (1 + norm);
      EXPECT_LE(MaxError(InverseByIteration(scaled), expected), tolerance) << n << " " << norm;
    }
  }
}

TEST(KronFactors, AgreesWithTheOriginal) {
  EXPECT_EQ(KronFactors(4096), (KronShape{64, 64}));
  EXPECT_EQ(KronFactors(11008), (KronShape{86, 128}));
  EXPECT_EQ(KronFactors(14336), (KronShape{112, 128}));
  EXPECT_EQ(KronFactors(512), (KronShape{16, 32}));
  EXPECT_EQ(KronFactors(1376), (KronShape{16, 86}));
  EXPECT_EQ(KronFactors(12), (KronShape{2, 6}));  // not 3 x 4: parities differ
}

TEST(KronFactors, TakesTheNearestFactorsWhereTheOriginalNeverEnds) {
  EXPECT_EQ(KronFactors(2), (KronShape{1, 2}));
  EXPECT_EQ(KronFactors(14), (KronShape{2, 7}));
  EXPECT_EQ(KronFactors(90), (KronShape{9, 10}));
}

TEST(KronFactors, GivesAPrimeOneDenseFactor) {
  EXPECT_EQ(KronFactors(1), (KronShape{1, 1}));
  EXPECT_EQ(KronFactors(13), (KronShape{1, 13}));
  EXPECT_EQ(KronFactors(1009), (KronShape{1, 1009}));
}

TEST(KronFactors, AgreesWithTheOriginalsSearchEverywhere) {
  for (int64_t n = 1; n <= 3000; ++n) {
    const KronShape shape = KronFactors(n);
    ASSERT_EQ(shape.left * shape.right, n);
    ASSERT_LE(shape.left, shape.right);
    if (n % 4 == 2) continue;
    for (int64_t b = 0;; ++b) {
      const int64_t a =
          static_cast<int64_t>(std::llround(std::sqrt(static_cast<double>(n + b * b))));
      if (a * a != n + b * b) continue;
      ASSERT_EQ(shape, (KronShape{a - b, a + b})) << n;
      break;
    }
  }
}

TEST(RandomOrthogonal, IsOrthogonalAndSeeded) {
  Rng rng(1), same(1), other(2);
  const at::Tensor q = RandomOrthogonal(23, rng);
  EXPECT_LE(MaxError(at::matmul(q, q.t()), at::eye(23)), 1e-14);
  EXPECT_TRUE(at::equal(q, RandomOrthogonal(23, same)));
  EXPECT_GE(MaxError(q, RandomOrthogonal(23, other)), 0.1);
}

TEST(InvertibleMatrix, IdentityHasNothing) {
  const InvertibleMatrix identity;
  EXPECT_TRUE(identity.is_identity());
  EXPECT_FALSE(identity.Evaluate(at::kFloat).matrix.defined());
  EXPECT_TRUE(identity.parameters().empty());
}

TEST(InvertibleMatrix, StartsOrthogonal) {
  for (const bool svd : {true, false}) {
    Rng rng(3);
    const InvertibleMatrix matrix = svd ? InvertibleMatrix::SvdCayley(16, rng, kCpu)
                                        : InvertibleMatrix::DirectInverse(16, rng, kCpu);
    const at::Tensor p = matrix.Evaluate(at::kDouble).matrix;
    // DirectInverse keeps P in float32.
    EXPECT_LE(MaxError(at::matmul(p, p.t()), at::eye(16)), svd ? 1e-13 : 1e-6);
    EXPECT_GE(MaxError(p, at::eye(16)), 0.1);
  }
}

// The original's: PyTorch's parametrizations.orthogonal of a random orthogonal matrix X gives
// (I - A/2)^-1 (I + A/2) with A = tril(X) - tril(X)^T; -X is as likely as X.
TEST(InvertibleMatrix, CayleyStartIsTheMapOfARandomOrthogonalMatrix) {
  constexpr int64_t kSize = 16;
  Rng rng(3), same(3);
  const InvertibleMatrix matrix =
      InvertibleMatrix::SvdCayley(kSize, rng, kCpu, InvertibleMatrix::Start::kCayley);
  const auto map = [](const at::Tensor& x) {
    const at::Tensor half = (x.tril() - x.tril().t()) * 0.5, identity = at::eye(kSize, x.options());
    return at::matmul(at::linalg_inv(identity - half), identity + half);
  };
  // As they are trained, in float.
  const auto draw = [&] { return RandomOrthogonal(kSize, same).to(at::kFloat).to(at::kDouble); };
  const at::Tensor x = draw(), y = draw();
  const at::Tensor expected = at::matmul(map(-x), map(-y).t());
  EXPECT_LE(MaxError(matrix.Evaluate(at::kDouble).matrix, expected), 1e-13);
  // What decays is X's lower triangle.
  EXPECT_TRUE(at::equal(matrix.parameters()[0][0].to(at::kDouble), x.tril(-1)));
}

TEST(InvertibleMatrix, InverseTransposeBelongsToTheMatrixAfterTraining) {
  for (const int64_t n : {1, 2, 5, 32}) {
    for (const bool svd : {true, false}) {
      Rng rng(static_cast<uint64_t>(n));
      const InvertibleMatrix matrix = svd ? InvertibleMatrix::SvdCayley(n, rng, kCpu)
                                          : InvertibleMatrix::DirectInverse(n, rng, kCpu);
      Perturb(matrix, 0.05, rng);
      for (const at::ScalarType type : {at::kFloat, at::kDouble}) {
        const MatrixPair pair = matrix.Evaluate(type);
        const double epsilon = type == at::kFloat ? 1e-5 : 1e-13;
        EXPECT_LE(MaxError(at::matmul(pair.matrix, pair.inverse_transpose.t()), at::eye(n)),
                  epsilon * static_cast<double>(n))
            << "n " << n << " svd " << svd;
      }
    }
  }
}

TEST(InvertibleMatrix, CayleyMapStaysOrthogonalFarFromItsStart) {
  Rng rng(7);
  const InvertibleMatrix matrix = InvertibleMatrix::SvdCayley(12, rng, kCpu);
  {
    // Only U and V move; s stays 1, so that P must stay orthogonal.
    at::NoGradGuard no_grad;
    at::Tensor skew = matrix.parameters()[0];
    skew.copy_(at::full_like(skew, 3.0).tril(-1));
  }
  const at::Tensor p = matrix.Evaluate(at::kDouble).matrix;
  EXPECT_LE(MaxError(at::matmul(p, p.t()), at::eye(12)), 1e-12);
}

// The gradient of sum(G o P) + sum(H o P^-T) against central differences.
TEST(InvertibleMatrix, GradientsMatchDifferences) {
  for (const bool svd : {true, false}) {
    Rng rng(11);
    const int64_t n = 4;
    const InvertibleMatrix matrix = svd ? InvertibleMatrix::SvdCayley(n, rng, kCpu)
                                        : InvertibleMatrix::DirectInverse(n, rng, kCpu);
    Perturb(matrix, 0.1, rng);
    const at::Tensor g = RandomOrthogonal(n, rng), h = RandomOrthogonal(n, rng);
    const auto value = [&] {
      const MatrixPair pair = matrix.Evaluate(at::kDouble);
      return (g * pair.matrix).sum() + (h * pair.inverse_transpose).sum();
    };
    value().backward();
    for (at::Tensor parameter : matrix.parameters()) {
      const at::Tensor gradient = parameter.grad().flatten();
      at::NoGradGuard no_grad;
      float* cells = parameter.data_ptr<float>();
      for (int64_t i = 0; i < parameter.numel(); ++i) {
        const float start = cells[i];
        const float step = 0x1p-9f;
        cells[i] = start + step;
        const double above = value().item<double>(), width_above = cells[i];
        cells[i] = start - step;
        const double below = value().item<double>(), width_below = cells[i];
        cells[i] = start;
        // Central differences err by step^2 times a third derivative of order one.
        EXPECT_NEAR(gradient[i].item<double>(), (above - below) / (width_above - width_below), 2e-4)
            << "svd " << svd << " cell " << i;
      }
    }
  }
}

// In double, where padding adds nothing but zeros to the sums: a few roundings.
TEST(InvertibleMatrix, TogetherIsAsEachAlone) {
  Rng rng(13);
  std::vector<InvertibleMatrix> matrices;
  std::vector<const InvertibleMatrix*> pointers;
  for (const int64_t n : {3, 8, 1, 5}) {
    matrices.push_back(InvertibleMatrix::SvdCayley(n, rng, kCpu));
    Perturb(matrices.back(), 0.1, rng);
  }
  for (const InvertibleMatrix& matrix : matrices) pointers.push_back(&matrix);
  const auto together = InvertibleMatrix::EvaluateTogether(pointers, at::kDouble);
  for (size_t i = 0; i < matrices.size(); ++i) {
    const MatrixPair alone = matrices[i].Evaluate(at::kDouble);
    EXPECT_LE(MaxError(together[i].matrix, alone.matrix), 1e-14);
    EXPECT_LE(MaxError(together[i].inverse_transpose, alone.inverse_transpose), 1e-14);
    const at::Tensor g = RandomOrthogonal(matrices[i].size(), rng);
    const auto gradients = [&](const MatrixPair& pair) {
      const at::Tensor sum = (g * pair.matrix).sum() - (g * pair.inverse_transpose).sum();
      return torch::autograd::grad({sum}, matrices[i].parameters(), {}, /*retain_graph=*/true);
    };
    const auto of_together = gradients(together[i]), of_alone = gradients(alone);
    for (size_t k = 0; k < of_alone.size(); ++k) {
      // Gradients are kept in float, as the parameters are.
      EXPECT_LE(MaxError(of_together[k], of_alone[k]), 0x1p-24 * 20);
    }
  }
}

TEST(InvertibleMatrix, FixedComputesItsInverseAndRefusesASingularMatrix) {
  Rng rng(5);
  const at::Tensor p = RandomOrthogonal(6, rng) * 2.5;
  const MatrixPair pair = InvertibleMatrix::Fixed(p, "here").Evaluate(at::kDouble);
  EXPECT_LE(MaxError(at::matmul(pair.matrix, pair.inverse_transpose.t()), at::eye(6)), 1e-13);
  try {
    InvertibleMatrix::Fixed(at::zeros({3, 3}), "here");
    ADD_FAILURE() << "a singular matrix passed";
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "transforms.singular");
  }
}

}  // namespace
}  // namespace flatquant::compress
