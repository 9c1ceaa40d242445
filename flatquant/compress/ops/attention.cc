#include "flatquant/compress/ops/attention.h"

#include "flatquant/compress/ops/composite.h"

namespace flatquant::compress {

at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t window, bool amp) {
  return composite::CausalAttention(q, k, v, window, amp);
}

}  // namespace flatquant::compress
