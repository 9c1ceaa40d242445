#include "flatquant/compress/ops/norm.h"

#include "flatquant/compress/ops/composite.h"

namespace flatquant::compress {

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return composite::RmsNorm(x, weight, eps);
}

at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up) {
  return composite::Swiglu(gate, up);
}

at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  return composite::Rope(x, cos, sin);
}

}  // namespace flatquant::compress
