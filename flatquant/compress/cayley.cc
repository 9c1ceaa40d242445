#include "flatquant/compress/cayley.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace flatquant::compress {
namespace {

// The error of the start is at most b / (2 + b) with b the bound of |K|^2 below, which is at
// most (n / 2)^(1/4) times too large. Squared 12 times it is below a float's epsilon for b
// up to 500.
constexpr int kIterations = 12;

struct InverseFunction : torch::autograd::Function<InverseFunction> {
  static at::Tensor forward(torch::autograd::AutogradContext* ctx, const at::Tensor& skew) {
    const at::Tensor inverse = InverseByIteration(skew);
    ctx->save_for_backward({inverse});
    return inverse;
  }

  // d(M^-1) = -M^-1 dM M^-1
  static torch::autograd::variable_list backward(torch::autograd::AutogradContext* ctx,
                                                 torch::autograd::variable_list gradients) {
    const at::Tensor transposed = ctx->get_saved_variables()[0].transpose(1, 2);
    return {at::matmul(at::matmul(transposed, gradients[0]), transposed).neg()};
  }
};

}  // namespace

at::Tensor InverseOfIdentityPlus(const at::Tensor& skew) {
  if (!skew.is_cpu() && skew.scalar_type() == at::kFloat) return InverseFunction::apply(skew);
  return at::linalg_inv(at::eye(skew.size(-1), skew.options()) + skew);
}

at::Tensor InverseByIteration(const at::Tensor& skew) {
  const at::Tensor identity = at::eye(skew.size(-1), skew.options());
  const at::Tensor squared = at::matmul(skew, skew).neg();  // K K^T
  // Eigenvalues of K K^T come in pairs: twice the fourth power of the largest is at most
  // the sum of all of (K K^T)^4, which is the square of this norm.
  const at::Tensor fourth = at::matmul(squared, squared).square().sum({1, 2}, /*keepdim=*/true);
  const at::Tensor bound = (fourth * 0.5).sqrt().sqrt();
  const at::Tensor p = identity + squared;
  at::Tensor x = identity * (2.0 / (bound + 2.0));
  for (int i = 0; i < kIterations; ++i) {
    x = x * 2.0 - at::matmul(x, at::matmul(p, x));
  }
  const at::Tensor inverse = at::matmul(identity - skew, x);
  // Once more on I + K itself, whose condition is the root of P's.
  return inverse * 2.0 - at::matmul(inverse, inverse + at::matmul(skew, inverse));
}

}  // namespace flatquant::compress
