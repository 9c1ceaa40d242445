#include "flatquant/compress/ops/attention_flash.h"

#include <ATen/ATen.h>
#include <torch/version.h>

#include "flatquant/base/error.h"

namespace flatquant::compress {

#if TORCH_VERSION_MAJOR >= 2

bool TakesFlashAttention(const at::Tensor& q, int64_t window, Amp amp) {
  return q.is_cuda() && amp != Amp::kOff && window == 0;
}

at::Tensor FlashAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, Amp amp) {
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  // [batch, heads, tokens, dim], each KV head once for every query head that reads it.
  const auto operand = [&](const at::Tensor& t) {
    const int64_t kv_heads = t.size(2);
    return t.to(OperandType(amp, t.scalar_type()))
        .unsqueeze(3)
        .expand({batch, tokens, kv_heads, heads / kv_heads, dim})
        .reshape({batch, tokens, heads, dim})
        .transpose(1, 2);
  };
  const at::Tensor out = at::scaled_dot_product_attention(operand(q), operand(k), operand(v), {},
                                                          /*dropout_p=*/0.0, /*is_causal=*/true);
  return out.transpose(1, 2).reshape({batch, tokens, heads * dim}).to(q.scalar_type());
}

#else

bool TakesFlashAttention(const at::Tensor&, int64_t, Amp) { return false; }

at::Tensor FlashAttention(const at::Tensor&, const at::Tensor&, const at::Tensor&, Amp) {
  FLATQUANT_CHECK(false);
  return {};
}

#endif

}  // namespace flatquant::compress
