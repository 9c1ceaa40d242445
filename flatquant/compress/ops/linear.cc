#include "flatquant/compress/ops/linear.h"

#include "flatquant/compress/ops/composite.h"

namespace flatquant::compress {

at::Tensor LinearOp(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias, bool amp) {
  return composite::Linear(x, w, bias, amp);
}

std::vector<at::Tensor> LinearGroup(const at::Tensor& x, const std::vector<at::Tensor>& weights,
                                    const std::vector<at::Tensor>& biases, bool amp) {
  std::vector<at::Tensor> y;
  for (size_t i = 0; i < weights.size(); ++i) {
    y.push_back(LinearOp(x, weights[i], biases.empty() ? at::Tensor() : biases[i], amp));
  }
  return y;
}

}  // namespace flatquant::compress
