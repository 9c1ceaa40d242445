#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "flatquant/compress/ops/amp.h"

namespace flatquant::compress {

// Causal softmax attention with grouped queries: query head h reads KV head
// h / (heads / kv_heads).
//
//   out[b,t,h] = sum_u softmax_u(q[b,t,h] . k[b,u,g] / sqrt(head_dim)) v[b,u,g],
//   u in [max(0, t - window + 1), t]
//
// q: [batch, tokens, heads, head_dim]; k, v: [batch, tokens, kv_heads,
// head_dim]. window 0 means no limit. Returns [batch, tokens, heads *
// head_dim], float. amp: matrix products round their operands (sums stay
// float), on a CPU where it has such products. Never holds a tokens x tokens matrix on the CPU.
at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t window = 0, Amp amp = Amp::kOff);

}  // namespace flatquant::compress
