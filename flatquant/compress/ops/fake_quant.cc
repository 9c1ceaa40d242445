#include "flatquant/compress/ops/fake_quant.h"

#include <ATen/ATen.h>

#include "flatquant/compress/ops/composite.h"

namespace flatquant::compress {

at::Tensor FakeQuantActivation(const at::Tensor& x, const at::Tensor& clip_max_logit,
                               const at::Tensor& clip_min_logit, int bits,
                               at::ScalarType out_dtype) {
  return composite::FakeQuantActivation(x, clip_max_logit, clip_min_logit, bits).to(out_dtype);
}

at::Tensor FakeQuantKv(const at::Tensor& x, const at::Tensor& clip_max_logit,
                       const at::Tensor& clip_min_logit, int bits, at::ScalarType out_dtype) {
  return composite::FakeQuantKv(x, clip_max_logit, clip_min_logit, bits).to(out_dtype);
}

at::Tensor FakeQuantWeight(const at::Tensor& w, const at::Tensor& clip_max_logit,
                           const at::Tensor& clip_min_logit, int bits, at::ScalarType out_dtype) {
  return composite::FakeQuantWeight(w, clip_max_logit, clip_min_logit, bits).to(out_dtype);
}

}  // namespace flatquant::compress
