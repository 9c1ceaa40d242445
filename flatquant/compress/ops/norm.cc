#include "flatquant/compress/ops/norm.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/exp.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct RmsNormFunction : torch::autograd::Function<RmsNormFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const OptionalTensor& weight, double eps) {
    const at::Tensor x = input.contiguous();
    const int64_t n = x.size(-1), rows = x.numel() / n;
    const at::Tensor w = weight.has_value() ? weight->contiguous() : at::ones({n}, x.options());
    const at::Tensor y = at::empty_like(x), inverse = at::empty({rows}, x.options());
    const float *from = x.data_ptr<float>(), *scale = w.data_ptr<float>();
    float *to = y.data_ptr<float>(), *r = inverse.data_ptr<float>();
    ParallelFor(rows, RowGrain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const float* a = from + i * n;
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < n; ++j) sum += a[j] * a[j];
        r[i] = static_cast<float>(1.0 / std::sqrt(static_cast<double>(sum) / n + eps));
        for (int64_t j = 0; j < n; ++j) to[i * n + j] = a[j] * r[i] * scale[j];
      }
    });
    ctx->save_for_backward({x, w, inverse});
    ctx->saved_data["weighted"] = weight.has_value();
    return y;
  }

  // With h = x r: dx = r (g w - h mean(g w h)), dw = sum over rows of g h.
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &w = saved[1], &inverse = saved[2];
    const at::Tensor g = gradients[0].contiguous();
    const bool weighted = ctx->saved_data["weighted"].toBool();
    const bool weight_gradient = weighted && ctx->needs_input_grad(1);
    const int64_t n = x.size(-1), rows = x.numel() / n;
    const at::Tensor dx = at::empty_like(x);
    // One sum per piece, added up in order, so that the result depends on the
    // thread count alone.
    const int64_t pieces = std::min<int64_t>(OpThreads(), rows);
    const at::Tensor partial = at::zeros({std::max<int64_t>(pieces, 1), n}, x.options());
    const float *a = x.data_ptr<float>(), *scale = w.data_ptr<float>(),
                *r = inverse.data_ptr<float>(), *b = g.data_ptr<float>();
    float *d = dx.data_ptr<float>(), *sums = partial.data_ptr<float>();
    ParallelForEach(pieces, [&](int, int64_t piece) {
      float* dw = sums + piece * n;
      for (int64_t i = rows * piece / pieces; i < rows * (piece + 1) / pieces; ++i) {
        const float *ai = a + i * n, *bi = b + i * n;
        float* di = d + i * n;
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < n; ++j) dot += ai[j] * bi[j] * scale[j];
        const float ri = r[i], shrink = dot * ri * ri * ri / static_cast<float>(n);
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) di[j] = bi[j] * scale[j] * ri - ai[j] * shrink;
        if (!weight_gradient) continue;
#pragma omp simd
        for (int64_t j = 0; j < n; ++j) dw[j] += ai[j] * bi[j] * ri;
      }
    });
    return {dx, weight_gradient ? partial.sum(0) : at::Tensor(), at::Tensor()};
  }
};

struct SwigluFunction : torch::autograd::Function<SwigluFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& gate, const at::Tensor& up) {
    const at::Tensor a = gate.contiguous(), b = up.contiguous(), y = at::empty_like(a);
    const float *pa = a.data_ptr<float>(), *pb = b.data_ptr<float>();
    float* to = y.data_ptr<float>();
    ParallelFor(a.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) to[i] = pa[i] * pb[i] / (1.0f + FastExp(-pa[i]));
    });
    ctx->save_for_backward({a, b});
    return y;
  }

  // With s = sigmoid(gate): dgate = g up s (1 + gate (1 - s)), dup = g gate s.
  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor g = gradients[0].contiguous();
    const at::Tensor da = at::empty_like(saved[0]), db = at::empty_like(saved[1]);
    const float *pa = saved[0].data_ptr<float>(), *pb = saved[1].data_ptr<float>(),
                *pg = g.data_ptr<float>();
    float *qa = da.data_ptr<float>(), *qb = db.data_ptr<float>();
    ParallelFor(g.numel(), kElementGrain, [&](int64_t begin, int64_t end) {
#pragma omp simd
      for (int64_t i = begin; i < end; ++i) {
        const float s = 1.0f / (1.0f + FastExp(-pa[i]));
        qa[i] = pg[i] * pb[i] * s * (1.0f + pa[i] * (1.0f - s));
        qb[i] = pg[i] * pa[i] * s;
      }
    });
    return {da, db};
  }
};

// Rotates every pair by its angle, or (direction -1) back.
at::Tensor Rotate(const at::Tensor& input, const at::Tensor& cos, const at::Tensor& sin,
                  float direction) {
  const at::Tensor x = input.contiguous(), y = at::empty_like(x);
  const int64_t tokens = x.size(1), heads = x.size(2), half = x.size(3) / 2;
  const float *from = x.data_ptr<float>(), *c = cos.data_ptr<float>(), *s = sin.data_ptr<float>();
  float* to = y.data_ptr<float>();
  ParallelFor(x.size(0) * tokens, RowGrain(2 * half * heads), [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float *ct = c + row % tokens * half, *st = s + row % tokens * half;
      for (int64_t h = row * heads; h < (row + 1) * heads; ++h) {
        const float* a = from + h * 2 * half;
        float* b = to + h * 2 * half;
#pragma omp simd
        for (int64_t j = 0; j < half; ++j) {
          const float sine = direction * st[j];
          b[j] = a[j] * ct[j] - a[j + half] * sine;
          b[j + half] = a[j + half] * ct[j] + a[j] * sine;
        }
      }
    }
  });
  return y;
}

struct RopeFunction : torch::autograd::Function<RopeFunction> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& x, const at::Tensor& cos,
                            const at::Tensor& sin) {
    const at::Tensor c = cos.contiguous(), s = sin.contiguous();
    ctx->save_for_backward({c, s});
    return Rotate(x, c, s, 1.0f);
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    return {Rotate(gradients[0], saved[0], saved[1], -1.0f), at::Tensor(), at::Tensor()};
  }
};

}  // namespace

at::Tensor RmsNorm(const at::Tensor& x, const at::Tensor& weight, double eps) {
  if (!IsCpuFloat(x) || !IsCpuFloat(weight) || x.numel() == 0) {
    return composite::RmsNorm(x, weight, eps);
  }
  return RmsNormFunction::apply(x, ToOptional(weight), eps);
}

at::Tensor Swiglu(const at::Tensor& gate, const at::Tensor& up) {
  if (!IsCpuFloat(gate) || !IsCpuFloat(up)) return composite::Swiglu(gate, up);
  return SwigluFunction::apply(gate, up);
}

at::Tensor Rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin) {
  if (!IsCpuFloat(x) || !IsCpuFloat(cos) || !IsCpuFloat(sin)) return composite::Rope(x, cos, sin);
  return RopeFunction::apply(x, cos, sin);
}

}  // namespace flatquant::compress
