#include "flatquant/compress/ops/kron.h"

#include "flatquant/compress/ops/composite.h"

namespace flatquant::compress {

at::Tensor KronTransform(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right) {
  return composite::KronTransform(x, left, right);
}

}  // namespace flatquant::compress
