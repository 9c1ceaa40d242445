#include "flatquant/compress/transform.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <tuple>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/compress/cayley.h"

namespace flatquant::compress {

namespace {

// P = U diag(s) V^T and P^-T = U diag(1/s) V^T of m matrices: both [m, n, n]. Of each matrix
// bases and skew hold U's and V's: [2 m, n, n]. values: s, [m, n].
std::pair<at::Tensor, at::Tensor> SvdPairs(const at::Tensor& bases, const at::Tensor& skew,
                                           const at::Tensor& values) {
  const at::Tensor lower = skew.tril(-1);
  const at::Tensor identity = at::eye(skew.size(-1), skew.options());
  const at::Tensor half = (lower - lower.transpose(1, 2)) * 0.5;
  const at::Tensor cayley = InverseOfIdentityPlus(half) * 2.0 - identity;
  const at::Tensor orthogonal = at::matmul(bases.to(skew.scalar_type()), cayley)
                                    .reshape({values.size(0), 2, skew.size(1), skew.size(2)});
  const at::Tensor u = orthogonal.select(1, 0);
  const at::Tensor vt = orthogonal.select(1, 1).transpose(1, 2);
  const at::Tensor s = values.unsqueeze(1);
  return {at::matmul(u * s, vt), at::matmul(u / s, vt)};
}

}  // namespace

KronShape KronFactors(int64_t n) {
  FLATQUANT_CHECK(n >= 1);
  int64_t root = static_cast<int64_t>(std::sqrt(static_cast<double>(n)));
  while (root * root > n) --root;
  while ((root + 1) * (root + 1) <= n) ++root;

  // a - b and a + b have equal parity, and a smaller b means nearer factors.
  const bool any_parity = n % 4 == 2;
  for (int64_t left = root; left >= 1; --left) {
    if (n % left != 0) continue;
    const int64_t right = n / left;
    if (any_parity || (right - left) % 2 == 0) return {left, right};
  }
  return {1, n};
}

at::Tensor RandomOrthogonal(int64_t n, Rng& rng) {
  at::Tensor gaussian = at::empty({n, n}, at::kDouble);
  double* values = gaussian.data_ptr<double>();
  for (int64_t i = 0; i < n * n; ++i) values[i] = rng.Normal();
  auto [q, r] = at::linalg_qr(gaussian);
  // QR fixes R's diagonal only up to sign; making it positive makes Q uniform.
  const at::Tensor diagonal = r.diagonal();
  return (q * at::where(diagonal < 0, -at::ones_like(diagonal), at::ones_like(diagonal)))
      .contiguous();
}

InvertibleMatrix InvertibleMatrix::SvdCayley(int64_t n, Rng& rng, at::Device device, Start start) {
  InvertibleMatrix result;
  result.kind_ = Kind::kSvdCayley;
  result.n_ = n;
  const at::Tensor u = RandomOrthogonal(n, rng);
  const at::Tensor v = RandomOrthogonal(n, rng);
  const at::Tensor drawn = at::stack({u, v});
  const bool maps = start == Start::kCayley;
  result.bases_ =
      (maps ? at::eye(n, drawn.options()).expand({2, n, n}).contiguous() : drawn).to(device);
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device);
  result.skew_ =
      (maps ? drawn.tril(-1).to(options) : at::zeros({2, n, n}, options)).requires_grad_();
  result.values_ = at::ones({n}, options).requires_grad_();
  return result;
}

InvertibleMatrix InvertibleMatrix::DirectInverse(int64_t n, Rng& rng, at::Device device) {
  InvertibleMatrix result;
  result.kind_ = Kind::kDirectInverse;
  result.n_ = n;
  result.matrix_ = RandomOrthogonal(n, rng).to(at::kFloat).to(device).requires_grad_();
  return result;
}

InvertibleMatrix InvertibleMatrix::Fixed(const at::Tensor& matrix, const std::string& where) {
  FLATQUANT_CHECK(matrix.dim() == 2 && matrix.size(0) == matrix.size(1));
  InvertibleMatrix result;
  result.kind_ = Kind::kFixed;
  result.n_ = matrix.size(0);
  result.matrix_ = matrix.detach().to(at::kDouble).contiguous();
  auto [inverse, info] = at::linalg_inv_ex(result.matrix_);
  if (info.item<int>() != 0 || !at::isfinite(inverse).all().item<bool>()) {
    throw Error("transforms.singular", where, "the matrix has no inverse",
                "use the matrices of a finished calibration");
  }
  result.inverse_ = inverse.t().contiguous();
  return result;
}

MatrixPair InvertibleMatrix::Evaluate(at::ScalarType type) const {
  switch (kind_) {
    case Kind::kIdentity:
      return {};
    case Kind::kSvdCayley: {
      const auto [p, inverse] = SvdPairs(bases_, skew_.to(type), values_.to(type).unsqueeze(0));
      return {p.select(0, 0), inverse.select(0, 0)};
    }
    case Kind::kDirectInverse: {
      const at::Tensor p = matrix_.to(type);
      // Without a check, which would make the host wait: a loss that is not finite shows it.
      return {p, std::get<0>(at::linalg_inv_ex(p)).t().contiguous()};
    }
    case Kind::kFixed:
      return {matrix_.to(type), inverse_.to(type)};
  }
  return {};
}

std::vector<MatrixPair> InvertibleMatrix::EvaluateTogether(
    const std::vector<const InvertibleMatrix*>& matrices, at::ScalarType type) {
  int64_t size = 0;
  for (const InvertibleMatrix* matrix : matrices) {
    FLATQUANT_CHECK(matrix->kind_ == Kind::kSvdCayley);
    size = std::max(size, matrix->n_);
  }
  // What is added turns nothing and scales by 1. It takes up bases of zeros: rows and
  // columns of zeros in P.
  std::vector<at::Tensor> bases, skews, values;
  for (const InvertibleMatrix* matrix : matrices) {
    const int64_t more = size - matrix->n_;
    bases.push_back(at::constant_pad_nd(matrix->bases_.to(type), {0, more, 0, more}));
    skews.push_back(at::constant_pad_nd(matrix->skew_.to(type), {0, more, 0, more}));
    values.push_back(at::constant_pad_nd(matrix->values_.to(type), {0, more}, 1));
  }
  const auto [p, inverse] = SvdPairs(at::cat(bases), at::cat(skews), at::stack(values));
  const auto all_p = p.unbind(0), all_inverses = inverse.unbind(0);
  std::vector<MatrixPair> pairs;
  for (size_t i = 0; i < matrices.size(); ++i) {
    const auto part = [n = matrices[i]->n_](const at::Tensor& padded) {
      return padded.narrow(0, 0, n).narrow(1, 0, n).contiguous();
    };
    pairs.push_back({part(all_p[i]), part(all_inverses[i])});
  }
  return pairs;
}

std::vector<MatrixPair> InvertibleMatrix::EvaluateAll(
    const std::vector<const InvertibleMatrix*>& matrices, at::ScalarType type) {
  std::vector<const InvertibleMatrix*> together;
  for (const InvertibleMatrix* matrix : matrices) {
    if (matrix->kind_ == Kind::kSvdCayley && !matrix->skew_.is_cpu()) together.push_back(matrix);
  }
  std::vector<MatrixPair> padded;
  if (!together.empty()) padded = EvaluateTogether(together, type);
  std::vector<MatrixPair> pairs;
  auto next = padded.begin();
  for (const InvertibleMatrix* matrix : matrices) {
    const bool was = matrix->kind_ == Kind::kSvdCayley && !matrix->skew_.is_cpu();
    pairs.push_back(was ? *next++ : matrix->Evaluate(type));
  }
  return pairs;
}

std::vector<at::Tensor> InvertibleMatrix::parameters() const {
  switch (kind_) {
    case Kind::kSvdCayley:
      return {skew_, values_};
    case Kind::kDirectInverse:
      return {matrix_};
    default:
      return {};
  }
}

}  // namespace flatquant::compress
