#include "flatquant/compress/ops/attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>
#include <memory>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/ops/attention_blocks.h"
#include "flatquant/compress/ops/attention_flash.h"
#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/gemm.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows and columns of a block of logits: two blocks of floats and two of
// operands (backward's needs) stay in a core's L2, and the products are large
// enough to run at full speed.
constexpr int64_t kBlock = 128;

struct Shape {
  int64_t batch, tokens, heads, kv_heads, dim, window;
  int64_t block;   // of queries and of keys
  int64_t padded;  // tokens, rounded up to whole blocks

  Shape(const at::Tensor& q, int64_t kv_heads_, int64_t window_)
      : batch(q.size(0)),
        tokens(q.size(1)),
        heads(q.size(2)),
        kv_heads(kv_heads_),
        dim(q.size(3)),
        window(window_),
        block(std::min(kBlock, (tokens + 15) / 16 * 16)),
        padded((tokens + block - 1) / block * block) {}

  float scale() const { return static_cast<float>(1.0 / std::sqrt(static_cast<double>(dim))); }
  int64_t group() const { return heads / kv_heads; }
  int64_t blocks() const { return padded / block; }
  // Elements of one head, padded.
  int64_t plane() const { return padded * dim; }
  // First block of keys that a block of queries sees; the last is its own.
  int64_t FirstKeyBlock(int64_t query_block) const {
    return window > 0 ? std::max<int64_t>(0, query_block * block - window + 1) / block : 0;
  }
};

template <typename T>
constexpr GemmType kOperand = sizeof(T) == 2 ? GemmType::kBFloat16 : GemmType::kFloat;

// [block, block] = [block, dim] [block, dim]^T
template <typename T>
GemmShape LogitProduct(const Shape& s) {
  GemmShape shape;
  shape.m = shape.n = shape.c_stride = s.block;
  shape.k = shape.a_stride = shape.b_stride = s.dim;
  shape.transpose_b = true;
  shape.operands = kOperand<T>;
  return shape;
}

// [block, dim] += op([block, block]) [block, dim]
template <typename T>
GemmShape ValueProduct(const Shape& s, bool transpose) {
  GemmShape shape;
  shape.m = shape.k = shape.a_stride = s.block;
  shape.n = shape.b_stride = shape.c_stride = s.dim;
  shape.transpose_a = transpose;
  shape.operands = kOperand<T>;
  shape.accumulate = true;
  return shape;
}

// Copies one head of x [tokens, stride] to [padded, dim], zeros at the end.
template <typename T>
void PackHead(const float* x, int64_t stride, const Shape& s, T* to) {
  for (int64_t t = 0; t < s.tokens; ++t) {
    const float* row = x + t * stride;
#pragma omp simd
    for (int64_t d = 0; d < s.dim; ++d) StoreOperand(row[d], to + t * s.dim + d);
  }
  std::memset(to + s.tokens * s.dim, 0, sizeof(T) * (s.padded - s.tokens) * s.dim);
}

// [batch, tokens, heads, dim] -> [batch, heads, padded, dim].
template <typename T>
at::Tensor Pack(const at::Tensor& input, const Shape& s) {
  const at::Tensor x = input.contiguous();
  const int64_t heads = x.size(2);
  const at::Tensor packed =
      at::empty({s.batch, heads, s.padded, s.dim},
                x.options().dtype(sizeof(T) == 2 ? at::kBFloat16 : at::kFloat));
  const float* from = x.data_ptr<float>();
  T* to = static_cast<T*>(packed.data_ptr());
  ParallelFor(s.batch * heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      PackHead(from + ((i / heads) * s.tokens * heads + i % heads) * s.dim, heads * s.dim, s,
               to + i * s.plane());
    }
  });
  return packed;
}

// Runs body(the thread's worker, task) for tasks 0..n-1, each on whichever thread
// is free; tasks must not share results.
template <typename Worker, typename Body>
void ForEachTask(int64_t n, const Shape& shape, const Body& body) {
  std::vector<std::unique_ptr<Worker>> workers(OpThreads());
  ParallelForEach(n, [&](int thread, int64_t task) {
    if (!workers[thread]) workers[thread] = std::make_unique<Worker>(shape);
    body(*workers[thread], task);
  });
}

template <typename T>
class ForwardWorker {
 public:
  explicit ForwardWorker(const Shape& s)
      : shape_(s),
        logit_product_(LogitProduct<T>(s)),
        value_product_(ValueProduct<T>(s, false)),
        logits_(s.block * s.block),
        sum_(s.block * s.dim),
        p_(s.block * s.block),
        state_(s.block) {}

  // One block of queries of one head. q: this block; k, v: the KV head's plane;
  // out: row 0 of the head, rows out_stride apart; lse: [padded] of the head.
  void operator()(const T* q, const T* k, const T* v, int64_t query_block, float* out,
                  int64_t out_stride, float* lse) {
    const Shape& s = shape_;
    std::fill(sum_.begin(), sum_.end(), 0.0f);
    std::fill(state_.begin(), state_.end(), SoftmaxState());
    const int64_t first = query_block * s.block;
    for (int64_t block = s.FirstKeyBlock(query_block); block <= query_block; ++block) {
      const int64_t key = block * s.block;
      logit_product_(q, k + key * s.dim, logits_.data());
      for (int64_t i = 0; i < s.block; ++i) {
        const float shrink = SoftmaxRow(logits_.data() + i * s.block, s.block,
                                        VisibleColumns(first + i, key, s.block, s.window),
                                        s.scale(), state_[i], p_.data() + i * s.block);
        float* sum = sum_.data() + i * s.dim;
#pragma omp simd
        for (int64_t d = 0; d < s.dim; ++d) sum[d] *= shrink;
      }
      value_product_(p_.data(), v + key * s.dim, sum_.data());
    }
    for (int64_t i = 0; i < s.block; ++i) {
      lse[first + i] = state_[i].max + std::log(state_[i].sum);
      if (first + i >= s.tokens) continue;
      const float inverse = 1.0f / state_[i].sum;
      float* row = out + (first + i) * out_stride;
      for (int64_t d = 0; d < s.dim; ++d) row[d] = sum_[i * s.dim + d] * inverse;
    }
  }

 private:
  Shape shape_;
  Gemm logit_product_, value_product_;
  std::vector<float> logits_, sum_;
  std::vector<T> p_;
  std::vector<SoftmaxState> state_;
};

template <typename T>
class BackwardWorker {
 public:
  explicit BackwardWorker(const Shape& s)
      : shape_(s),
        logit_product_(LogitProduct<T>(s)),
        query_product_(ValueProduct<T>(s, false)),
        key_product_(ValueProduct<T>(s, true)),
        logits_(s.block * s.block),
        dp_(s.block * s.block),
        dk_(s.block * s.dim),
        dv_(s.block * s.dim),
        dq_(s.group() * s.plane()),
        delta_(s.group() * s.padded),
        p_(s.block * s.block),
        dlogits_(s.block * s.block),
        dout_(s.group() * s.plane()) {}

  // One KV head of one batch entry with its group of query heads. q, lse: the
  // group's planes; k, v: the KV head's; the rest at row 0 of the group's first
  // head (out, dout, dq) or of the KV head (dk, dv), rows a stride apart.
  void operator()(const T* q, const T* k, const T* v, const float* lse, const float* out,
                  const float* dout, float* dq, float* dk, float* dv) {
    const Shape& s = shape_;
    const int64_t stride = s.heads * s.dim, kv_stride = s.kv_heads * s.dim;
    Prepare(out, dout, stride);
    std::fill(dq_.begin(), dq_.end(), 0.0f);
    for (int64_t block = 0; block < s.blocks(); ++block) {
      std::fill(dk_.begin(), dk_.end(), 0.0f);
      std::fill(dv_.begin(), dv_.end(), 0.0f);
      for (int64_t query_block = block; query_block < s.blocks(); ++query_block) {
        if (s.FirstKeyBlock(query_block) > block) break;
        for (int64_t h = 0; h < s.group(); ++h) {
          const int64_t offset = h * s.plane() + query_block * s.block * s.dim;
          Block(q + offset, k + block * s.block * s.dim, v + block * s.block * s.dim,
                lse + h * s.padded, h, query_block, block);
        }
      }
      const int64_t rows = std::min(s.block, s.tokens - block * s.block);
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t to = (block * s.block + i) * kv_stride;
        std::memcpy(dk + to, dk_.data() + i * s.dim, sizeof(float) * s.dim);
        std::memcpy(dv + to, dv_.data() + i * s.dim, sizeof(float) * s.dim);
      }
    }
    for (int64_t h = 0; h < s.group(); ++h) {
      for (int64_t t = 0; t < s.tokens; ++t) {
        std::memcpy(dq + t * stride + h * s.dim, dq_.data() + h * s.plane() + t * s.dim,
                    sizeof(float) * s.dim);
      }
    }
  }

 private:
  // dout as operands, and delta = the row's sum of out * dout, which equals that
  // of p * dp.
  void Prepare(const float* out, const float* dout, int64_t stride) {
    const Shape& s = shape_;
    for (int64_t h = 0; h < s.group(); ++h) {
      PackHead(dout + h * s.dim, stride, s, dout_.data() + h * s.plane());
      float* delta = delta_.data() + h * s.padded;
      std::fill(delta + s.tokens, delta + s.padded, 0.0f);
      for (int64_t t = 0; t < s.tokens; ++t) {
        const float *a = out + t * stride + h * s.dim, *b = dout + t * stride + h * s.dim;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t d = 0; d < s.dim; ++d) sum += a[d] * b[d];
        delta[t] = sum;
      }
    }
  }

  void Block(const T* q, const T* k, const T* v, const float* lse, int64_t head,
             int64_t query_block, int64_t key_block) {
    const Shape& s = shape_;
    const int64_t first = query_block * s.block;
    const int64_t offset = head * s.plane() + first * s.dim;
    const T* dout = dout_.data() + offset;
    logit_product_(q, k, logits_.data());
    logit_product_(dout, v, dp_.data());
    for (int64_t i = 0; i < s.block; ++i) {
      const int64_t row = i * s.block;
      SoftmaxRowBackward(logits_.data() + row, dp_.data() + row, s.block,
                         VisibleColumns(first + i, key_block * s.block, s.block, s.window),
                         s.scale(), lse[first + i], delta_[head * s.padded + first + i],
                         p_.data() + row, dlogits_.data() + row);
    }
    key_product_(p_.data(), dout, dv_.data());
    key_product_(dlogits_.data(), q, dk_.data());
    query_product_(dlogits_.data(), k, dq_.data() + offset);
  }

  Shape shape_;
  Gemm logit_product_, query_product_, key_product_;
  std::vector<float> logits_, dp_, dk_, dv_, dq_, delta_;
  std::vector<T> p_, dlogits_, dout_;
};

template <typename T>
at::Tensor RunForward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const at::Tensor& lse, const Shape& s) {
  const at::Tensor out = at::empty({s.batch, s.tokens, s.heads * s.dim}, lse.options());
  const auto* pq = static_cast<const T*>(q.data_ptr());
  const auto* pk = static_cast<const T*>(k.data_ptr());
  const auto* pv = static_cast<const T*>(v.data_ptr());
  float *po = out.data_ptr<float>(), *pl = lse.data_ptr<float>();
  const int64_t planes = s.batch * s.heads;
  ForEachTask<ForwardWorker<T>>(
      planes * s.blocks(), s, [&](ForwardWorker<T>& worker, int64_t task) {
        // The last queries see the most keys: they go first.
        const int64_t block = s.blocks() - 1 - task / planes, plane = task % planes;
        const int64_t b = plane / s.heads, h = plane % s.heads;
        const int64_t kv = (b * s.kv_heads + h / s.group()) * s.plane();
        worker(pq + plane * s.plane() + block * s.block * s.dim, pk + kv, pv + kv, block,
               po + (b * s.tokens * s.heads + h) * s.dim, s.heads * s.dim, pl + plane * s.padded);
      });
  return out;
}

template <typename T>
variable_list RunBackward(const variable_list& saved, const at::Tensor& gradient, const Shape& s) {
  const auto floats = gradient.options();
  const at::Tensor dq = at::empty({s.batch, s.tokens, s.heads, s.dim}, floats);
  const at::Tensor dk = at::empty({s.batch, s.tokens, s.kv_heads, s.dim}, floats);
  const at::Tensor dv = at::empty_like(dk);
  const auto* pq = static_cast<const T*>(saved[0].data_ptr());
  const auto* pk = static_cast<const T*>(saved[1].data_ptr());
  const auto* pv = static_cast<const T*>(saved[2].data_ptr());
  const float *lse = saved[3].data_ptr<float>(), *out = saved[4].data_ptr<float>(),
              *dout = gradient.data_ptr<float>();
  float *pdq = dq.data_ptr<float>(), *pdk = dk.data_ptr<float>(), *pdv = dv.data_ptr<float>();
  ForEachTask<BackwardWorker<T>>(
      s.batch * s.kv_heads, s, [&](BackwardWorker<T>& worker, int64_t task) {
        const int64_t b = task / s.kv_heads, g = task % s.kv_heads;
        const int64_t planes = (b * s.heads + g * s.group());
        const int64_t rows = (b * s.tokens * s.heads + g * s.group()) * s.dim;
        const int64_t kv_rows = (b * s.tokens * s.kv_heads + g) * s.dim;
        worker(pq + planes * s.plane(), pk + task * s.plane(), pv + task * s.plane(),
               lse + planes * s.padded, out + rows, dout + rows, pdq + rows, pdk + kv_rows,
               pdv + kv_rows);
      });
  return {dq, dk, dv, at::Tensor(), at::Tensor()};
}

struct AttentionFunction : torch::autograd::Function<AttentionFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& q, const at::Tensor& k,
                            const at::Tensor& v, int64_t window, bool amp) {
    const Shape s(q, k.size(2), window);
    const auto pack = [&](const at::Tensor& t) {
      return amp ? Pack<uint16_t>(t, s) : Pack<float>(t, s);
    };
    const at::Tensor pq = pack(q), pk = pack(k), pv = pack(v);
    const at::Tensor lse = at::empty({s.batch, s.heads, s.padded}, q.options());
    const at::Tensor out =
        amp ? RunForward<uint16_t>(pq, pk, pv, lse, s) : RunForward<float>(pq, pk, pv, lse, s);
    ctx->save_for_backward({pq, pk, pv, lse, out});
    ctx->saved_data["tokens"] = s.tokens;
    ctx->saved_data["window"] = window;
    return out;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor& q = saved[0];
    const int64_t tokens = ctx->saved_data["tokens"].toInt();
    const at::Tensor gradient = gradients[0].contiguous();
    // The packed query has the shape's sizes but for its padding and order.
    const Shape s(gradient.view({q.size(0), tokens, q.size(1), q.size(3)}), saved[1].size(1),
                  ctx->saved_data["window"].toInt());
    return q.scalar_type() == at::kBFloat16 ? RunBackward<uint16_t>(saved, gradient, s)
                                            : RunBackward<float>(saved, gradient, s);
  }
};

}  // namespace

at::Tensor CausalAttention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                           int64_t window, Amp amp) {
  FLATQUANT_CHECK(q.dim() == 4 && k.dim() == 4 && k.sizes() == v.sizes());
  FLATQUANT_CHECK(q.size(0) == k.size(0) && q.size(1) == k.size(1) && q.size(3) == k.size(3));
  FLATQUANT_CHECK(q.size(2) % k.size(2) == 0 && window >= 0);
  const bool fused = IsCpuFloat(q) && IsCpuFloat(k) && IsCpuFloat(v) && q.numel() > 0;
  if (!fused || amp == Amp::kF16) {
    return TakesFlashAttention(q, window, amp) ? FlashAttention(q, k, v, amp)
                                               : composite::CausalAttention(q, k, v, window, amp);
  }
  return AttentionFunction::apply(q, k, v, window, amp == Amp::kBF16 && GemmTakesBFloat16());
}

}  // namespace flatquant::compress
