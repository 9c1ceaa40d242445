#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/compress/quantize.h"

namespace flatquant::compress {

// The sizes of a Kronecker pair: left * right = n, left <= right.
struct KronShape {
  int64_t left = 1;
  int64_t right = 1;

  friend bool operator==(const KronShape&, const KronShape&) = default;
};

// How FlatQuant splits a width n >= 1. The original looks for the smallest b >= 0
// with n + b^2 = a^2 and takes (a - b, a + b): the nearest factors of equal parity,
// 4096 -> 64 x 64, 1376 -> 16 x 86. For n = 2 mod 4 there are none, and the nearest
// factors of any parity are taken: 14 -> 2 x 7. A prime gives one dense factor, 1 x n.
KronShape KronFactors(int64_t n);

// P and P^-T as they enter one step of a computation; undefined = identity.
struct MatrixPair {
  at::Tensor matrix;             // [n, n]
  at::Tensor inverse_transpose;  // [n, n]
};

// An invertible matrix P, trainable or given. Copies share their parameters.
class InvertibleMatrix {
 public:
  // The identity: Evaluate gives undefined tensors.
  InvertibleMatrix() = default;

  // P = U diag(s) V^T with s = 1 at first. U = B C(A), where B is fixed and C is the
  // Cayley map of the skew matrix A = T - T^T, T strictly lower triangular:
  // C(A) = (I - A/2) (I + A/2)^-1 = 2 (I + A/2)^-1 - I.
  // Then P^-T = U diag(1/s) V^T needs no further inverse.
  //
  // Of a random orthogonal matrix X, drawn from `rng` (QR of a Gaussian matrix):
  //   kOrthogonal  B = X, T = 0: U starts uniformly random
  //   kCayley      B = I, T = X's lower triangle: U starts as the original's does, whose raw
  //                parameter is such a matrix (PyTorch's parametrizations.orthogonal with
  //                map "cayley" and no trivialization; it maps -A, but -X is as likely as X)
  // AdamW's weight decay shrinks T, and so pulls U towards B.
  using Start = QuantizeOptions::Start;
  static InvertibleMatrix SvdCayley(int64_t n, Rng& rng, at::Device device,
                                    Start start = Start::kOrthogonal);

  // P itself is trained, from a random orthogonal start; P^-T by inverse.
  static InvertibleMatrix DirectInverse(int64_t n, Rng& rng, at::Device device);

  // A matrix that is not trained, [n, n]. P^-T is computed in float64.
  // Errors: transforms.singular with `where`, when P has no usable inverse.
  static InvertibleMatrix Fixed(const at::Tensor& matrix, const std::string& where);

  bool is_identity() const { return kind_ == Kind::kIdentity; }
  int64_t size() const { return n_; }

  // P and P^-T in `type`, differentiable when the parameters require gradients.
  // One evaluation per step; the result is used everywhere in that step.
  MatrixPair Evaluate(at::ScalarType type) const;

  // What AdamW trains; empty for identity and fixed matrices.
  std::vector<at::Tensor> parameters() const;

  // The pairs of several matrices, in their order. On a GPU, where the kernels of small
  // matrices take less time than their launches, those of the SVD are padded to one size
  // and evaluated together.
  static std::vector<MatrixPair> EvaluateAll(const std::vector<const InvertibleMatrix*>& matrices,
                                             at::ScalarType type);
  // Together wherever they are. matrices: of SvdCayley.
  static std::vector<MatrixPair> EvaluateTogether(
      const std::vector<const InvertibleMatrix*>& matrices, at::ScalarType type);

 private:
  enum class Kind { kIdentity, kSvdCayley, kDirectInverse, kFixed };

  Kind kind_ = Kind::kIdentity;
  int64_t n_ = 0;
  at::Tensor bases_;    // [2, n, n], float64: B of U and of V
  at::Tensor skew_;     // [2, n, n], float32: only the strictly lower triangles count
  at::Tensor values_;   // [n], float32: s
  at::Tensor matrix_;   // [n, n]: P (float32 for kDirectInverse, float64 for kFixed)
  at::Tensor inverse_;  // [n, n], float64: P^-T of kFixed
};

// A random orthogonal matrix, uniform over the orthogonal group: [n, n], float64, CPU.
at::Tensor RandomOrthogonal(int64_t n, Rng& rng);

}  // namespace flatquant::compress
