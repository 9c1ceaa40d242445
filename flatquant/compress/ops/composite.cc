#include "flatquant/compress/ops/composite.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <tuple>

#include "flatquant/compress/ops/adamw.h"

namespace flatquant::compress::composite {
namespace {

// Rounds half to even with gradient 1.
at::Tensor RoundStraightThrough(const at::Tensor& x) { return x + (x.round() - x).detach(); }

// The last dimension's maximum and minimum, both widened to hold 0 and scaled by
// their clips: (hi, lo), each [..., 1].
std::tuple<at::Tensor, at::Tensor> ClippedRange(const at::Tensor& x,
                                                const at::Tensor& clip_max_logit,
                                                const at::Tensor& clip_min_logit) {
  const at::Tensor zero = at::zeros({}, x.options());
  at::Tensor hi = at::maximum(x.amax(-1, /*keepdim=*/true), zero);
  at::Tensor lo = at::minimum(x.amin(-1, /*keepdim=*/true), zero);
  if (clip_max_logit.defined()) hi = hi * clip_max_logit.sigmoid();
  if (clip_min_logit.defined()) lo = lo * clip_min_logit.sigmoid();
  return {hi, lo};
}

at::Tensor OneWhereZero(const at::Tensor& scale) {
  return at::where(scale == 0, at::ones({}, scale.options()), scale);
}

}  // namespace

at::Tensor FakeQuantActivation(const at::Tensor& x, const at::Tensor& clip_max_logit,
                               const at::Tensor& clip_min_logit, int bits) {
  if (bits >= 16) return x;
  const double q_max = std::exp2(bits - 1) - 1;
  const auto [hi, lo] = ClippedRange(x, clip_max_logit, clip_min_logit);
  const at::Tensor scale = OneWhereZero(at::maximum(hi, -lo) / q_max);
  return scale * RoundStraightThrough(x / scale).clamp(-q_max - 1, q_max);
}

at::Tensor FakeQuantKv(const at::Tensor& x, const at::Tensor& clip_max_logit,
                       const at::Tensor& clip_min_logit, int bits) {
  if (bits >= 16) return x;
  const double q_max = std::exp2(bits) - 1;
  const auto [hi, lo] = ClippedRange(x, clip_max_logit, clip_min_logit);
  const at::Tensor scale = OneWhereZero((hi - lo) / q_max);
  const at::Tensor zero = (-lo / scale).round().detach();
  return scale * ((RoundStraightThrough(x / scale) + zero).clamp(0, q_max) - zero);
}

at::Tensor FakeQuantWeight(const at::Tensor& w, const at::Tensor& clip_max_logit,
                           const at::Tensor& clip_min_logit, int bits) {
  if (bits >= 16) return w;
  const double q_max = std::exp2(bits - 1) - 1;
  const auto column = [](const at::Tensor& logit) {
    return logit.defined() ? logit.reshape({-1, 1}) : logit;
  };
  const auto [hi, lo] = ClippedRange(w, column(clip_max_logit), column(clip_min_logit));
  const at::Tensor scale = OneWhereZero(at::maximum(hi, -lo) / q_max);
  return scale * RoundStraightThrough(at::clamp(w, lo, hi) / scale);
}

at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t window, Amp amp) {
  const int64_t batch = q.size(0), tokens = q.size(1), heads = q.size(2), dim = q.size(3);
  const int64_t kv_heads = k.size(2), group = heads / kv_heads;
  const auto operand = [amp](const at::Tensor& t) {
    return t.to(OperandType(amp, t.scalar_type()));
  };
  // Query heads of one KV head are stacked, so that K and V are not repeated:
  // [batch, kv_heads, group * tokens, dim].
  const at::Tensor queries = operand(q / std::sqrt(static_cast<double>(dim)))
                                 .permute({0, 2, 1, 3})
                                 .reshape({batch, kv_heads, group * tokens, dim});
  const at::Tensor keys = operand(k).permute({0, 2, 3, 1});
  const at::Tensor values = operand(v).permute({0, 2, 1, 3});
  at::Tensor logits =
      at::matmul(queries, keys).to(q.scalar_type()).view({batch, kv_heads, group, tokens, tokens});
  const auto index = at::TensorOptions().device(q.device()).dtype(at::kLong);
  const at::Tensor row = at::arange(tokens, index).unsqueeze(1);
  const at::Tensor column = at::arange(tokens, index).unsqueeze(0);
  at::Tensor hidden = column > row;
  if (window > 0) hidden = hidden.logical_or(column <= row - window);
  logits = logits.masked_fill(hidden, -std::numeric_limits<double>::infinity());
  const at::Tensor probabilities =
      operand(logits.softmax(-1)).view({batch, kv_heads, group * tokens, tokens});
  return at::matmul(probabilities, values)
      .to(q.scalar_type())
      .view({batch, heads, tokens, dim})
      .permute({0, 2, 1, 3})
      .reshape({batch, tokens, heads * dim});
}

at::Tensor Linear(const at::Tensor& x, const at::Tensor& w, const at::Tensor& bias, Amp amp) {
  const at::ScalarType out = IsSixteenBits(x.scalar_type()) ? at::kFloat : x.scalar_type();
  const at::ScalarType operand = OperandType(amp, out);
  at::Tensor y = at::matmul(x.to(operand), w.to(operand).t()).to(out);
  return bias.defined() ? y + bias : y;
}

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  const at::Tensor y = x * at::rsqrt((x * x).mean(-1, /*keepdim=*/true) + eps);
  return weight.defined() ? y * weight : y;
}

at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up) { return at::silu(gate) * up; }

at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  const auto halves = x.chunk(2, -1);
  const at::Tensor c = cos.unsqueeze(1), s = sin.unsqueeze(1);
  return at::cat({halves[0] * c - halves[1] * s, halves[1] * c + halves[0] * s}, -1);
}

at::Tensor KronTransform(const at::Tensor& x, const at::Tensor& left, const at::Tensor& right) {
  const int64_t n = x.size(-1);
  const int64_t rows = left.defined() ? left.size(0) : n / right.size(0);
  at::Tensor y = x.reshape({-1, rows, n / rows});
  if (right.defined()) y = at::matmul(y, right);
  if (left.defined()) y = at::matmul(left.t(), y);
  return y.reshape(x.sizes());
}

void AdamWStep(const at::Tensor& p, const at::Tensor& m, const at::Tensor& v, const at::Tensor& g,
               const at::Tensor& rate, const at::Tensor& factors, double decay) {
  const at::Tensor r = rate * factors.select(0, 0);
  m.mul_(kAdamBeta1).add_(g, 1 - kAdamBeta1);
  v.mul_(kAdamBeta2).addcmul_(g, g, 1 - kAdamBeta2);
  const at::Tensor size = (v.sqrt() * factors.select(0, 2)).add_(kAdamEpsilon);
  p.mul_(1 - r * decay).sub_((m / size).mul_(r).mul_(factors.select(0, 1)));
}

}  // namespace flatquant::compress::composite
