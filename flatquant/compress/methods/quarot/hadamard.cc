#include "flatquant/compress/methods/quarot/hadamard.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant::compress {
namespace {

bool IsPrime(int64_t n) {
  if (n < 2) return false;
  for (int64_t d = 2; d * d <= n; ++d) {
    if (n % d == 0) return false;
  }
  return true;
}

bool IsPaleyOne(int64_t n) { return (n - 1) % 4 == 3 && IsPrime(n - 1); }
bool IsPaleyTwo(int64_t n) { return n % 2 == 0 && (n / 2 - 1) % 4 == 1 && IsPrime(n / 2 - 1); }

// Jacobsthal's matrix of a prime q: Q_ij = 1 where i - j is a nonzero square modulo q,
// -1 where it is none, 0 on the diagonal.
at::Tensor Jacobsthal(int64_t q) {
  std::vector<double> character(static_cast<size_t>(q), -1);
  character[0] = 0;
  for (int64_t x = 1; x < q; ++x) character[static_cast<size_t>(x * x % q)] = 1;
  at::Tensor matrix = at::empty({q, q}, at::kDouble);
  auto entry = matrix.accessor<double, 2>();
  for (int64_t i = 0; i < q; ++i) {
    for (int64_t j = 0; j < q; ++j) entry[i][j] = character[static_cast<size_t>((i - j + q) % q)];
  }
  return matrix;
}

// Paley's conference matrix: Q with a first row of ones and a first column of `column`,
// -1 for the skew Q of q = 3 mod 4, 1 for the symmetric one of q = 1 mod 4.
at::Tensor Bordered(const at::Tensor& jacobsthal, double column) {
  const int64_t q = jacobsthal.size(0);
  at::Tensor matrix = at::zeros({q + 1, q + 1}, at::kDouble);
  matrix.narrow(0, 1, q).narrow(1, 1, q).copy_(jacobsthal);
  matrix.select(0, 0).narrow(0, 1, q).fill_(1);
  matrix.select(1, 0).narrow(0, 1, q).fill_(column);
  return matrix;
}

at::Tensor Pair(double a, double b, double c, double d) {
  return at::tensor({a, b, c, d}, at::kDouble).view({2, 2});
}

// Paley's two constructions, from a conference matrix S of order q + 1.
at::Tensor Paley(int64_t n) {
  if (IsPaleyOne(n)) return Bordered(Jacobsthal(n - 1), -1) + at::eye(n, at::kDouble);
  const at::Tensor symmetric = Bordered(Jacobsthal(n / 2 - 1), 1);
  return at::kron(symmetric, Pair(1, 1, 1, -1)) +
         at::kron(at::eye(n / 2, at::kDouble), Pair(1, -1, -1, -1));
}

// Four symmetric circulant matrices of order n with entries +1 and -1 whose squares add up
// to 4 n I. Bit i - 1 of a mask says that entries i and n - i of a first row are -1; entry
// 0 is +1. Published solutions (Williamson 1944; Baumert and Hall 1965; Koukouvinos and
// Kounias 1988); the test multiplies the matrices out.
struct WilliamsonQuadruple {
  int64_t n;
  std::array<uint32_t, 4> masks;
};
constexpr WilliamsonQuadruple kWilliamson[] = {{13, {0x000028, 0x000017, 0x00002e, 0x00002e}},
                                               {39, {0x066fac, 0x06d74c, 0x0579b8, 0x023ea7}},
                                               {43, {0x1e6d0e, 0x1a1594, 0x09af02, 0x122867}}};

const WilliamsonQuadruple* FindWilliamson(int64_t order) {
  for (const WilliamsonQuadruple& quadruple : kWilliamson) {
    if (4 * quadruple.n == order) return &quadruple;
  }
  return nullptr;
}

at::Tensor SymmetricCirculant(int64_t n, uint32_t mask) {
  at::Tensor matrix = at::ones({n, n}, at::kDouble);
  auto entry = matrix.accessor<double, 2>();
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) {
      const int64_t distance = std::min((i - j + n) % n, (j - i + n) % n);
      if (distance > 0 && (mask >> (distance - 1) & 1) != 0) entry[i][j] = -1;
    }
  }
  return matrix;
}

// Williamson's array: the matrix of a quaternion product, whose blocks commute.
at::Tensor Williamson(const WilliamsonQuadruple& quadruple) {
  std::array<at::Tensor, 4> blocks;
  for (size_t i = 0; i < 4; ++i) blocks[i] = SymmetricCirculant(quadruple.n, quadruple.masks[i]);
  const auto& [a, b, c, d] = blocks;
  return at::cat({at::cat({a, b, c, d}, 1), at::cat({-b, a, -d, c}, 1), at::cat({-c, d, a, -b}, 1),
                  at::cat({-d, -c, b, a}, 1)});
}

}  // namespace

bool HasHadamard(int64_t n) {
  for (; n > 2; n /= 2) {
    if (IsPaleyOne(n) || IsPaleyTwo(n) || FindWilliamson(n) != nullptr) return true;
    if (n % 4 != 0) return false;
  }
  return n >= 1;
}

at::Tensor HadamardMatrix(int64_t n) {
  FLATQUANT_CHECK(HasHadamard(n));
  if (n == 1) return at::ones({1, 1}, at::kDouble);
  if (n == 2) return Pair(1, 1, 1, -1);
  if (HasHadamard(n / 2) && n % 2 == 0) return at::kron(Pair(1, 1, 1, -1), HadamardMatrix(n / 2));
  if (const WilliamsonQuadruple* quadruple = FindWilliamson(n)) return Williamson(*quadruple);
  return Paley(n);
}

KronShape HadamardFactors(int64_t n) {
  // Each factor is one multiplication per element and order; beyond this a dense matrix
  // costs more than a Hadamard one is better than a random rotation. Llama's largest is 172.
  constexpr int64_t kLargestOrder = 256;
  const KronShape usual = KronFactors(n);
  for (int64_t left = usual.left; left >= 1; --left) {
    const KronShape shape = {left, n / left};
    if (shape.right > std::max(kLargestOrder, usual.right)) break;
    if (n % left == 0 && HasHadamard(left) && HasHadamard(shape.right)) return shape;
  }
  return usual;
}

at::Tensor RandomRotation(int64_t n, Rng& rng) {
  if (!HasHadamard(n)) return RandomOrthogonal(n, rng);
  at::Tensor signs = at::empty({n}, at::kDouble);
  for (int64_t i = 0; i < n; ++i) signs.data_ptr<double>()[i] = rng.Below(2) == 0 ? 1.0 : -1.0;
  return HadamardMatrix(n) * signs / std::sqrt(static_cast<double>(n));
}

}  // namespace flatquant::compress
