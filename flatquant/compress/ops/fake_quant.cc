#include "flatquant/compress/ops/fake_quant.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"
#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/fake_quant_rows.h"
#include "flatquant/compress/ops/parallel.h"

namespace flatquant::compress {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// The factor of each row's maximum (or minimum): sigmoid of its logit, or 1.
// One entry, or one per row.
at::Tensor ClipFactor(const OptionalTensor& logit, const at::Tensor& x) {
  return logit.has_value() ? logit->detach().reshape({-1}).sigmoid() : at::ones({1}, x.options());
}

struct Factors {
  const float *max, *min;
  int64_t max_step, min_step;  // 0 when one factor serves all rows

  Factors(const at::Tensor& clip_max, const at::Tensor& clip_min)
      : max(clip_max.data_ptr<float>()),
        min(clip_min.data_ptr<float>()),
        max_step(clip_max.numel() > 1),
        min_step(clip_min.numel() > 1) {}
};

// d(loss)/d(logit) from per-row d(loss)/d(factor).
at::Tensor LogitGradient(const at::Tensor& per_row, const at::Tensor& factor,
                         at::IntArrayRef sizes) {
  const at::Tensor gradient =
      factor.numel() > 1 ? per_row : per_row.sum(0, /*keepdim=*/true, at::kDouble);
  return (gradient * factor * (1 - factor)).to(at::kFloat).reshape(sizes);
}

template <GridKind kKind>
struct FakeQuantFunction : torch::autograd::Function<FakeQuantFunction<kKind>> {
  static at::Tensor forward(AutogradContext* ctx, const at::Tensor& input,
                            const OptionalTensor& clip_max_logit,
                            const OptionalTensor& clip_min_logit, int64_t bits,
                            at::ScalarType out_dtype) {
    const at::Tensor x = input.contiguous();
    const at::Tensor clip_max = ClipFactor(clip_max_logit, x);
    const at::Tensor clip_min = ClipFactor(clip_min_logit, x);
    const int64_t n = x.size(-1), rows = x.numel() / n;
    const at::Tensor y = at::empty_like(x, x.options().dtype(out_dtype));
    const at::Tensor ranges = at::empty({rows, 2}, x.options());
    const Factors factors(clip_max, clip_min);
    const float* from = x.data_ptr<float>();
    auto* range = reinterpret_cast<Range*>(ranges.data_ptr<float>());
    void* to = y.data_ptr();
    const bool rounded = out_dtype == at::kBFloat16;
    ParallelFor(rows, RowGrain(n), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        range[i] = FindRange(from + i * n, n);
        const RowGrid grid = MakeGrid<kKind>(range[i].max * factors.max[i * factors.max_step],
                                             range[i].min * factors.min[i * factors.min_step],
                                             static_cast<int>(bits));
        if (rounded) {
          QuantizeRow<kKind>(from + i * n, n, grid, static_cast<uint16_t*>(to) + i * n);
        } else {
          QuantizeRow<kKind>(from + i * n, n, grid, static_cast<float*>(to) + i * n);
        }
      }
    });
    ctx->save_for_backward({x, clip_max, clip_min, ranges});
    ctx->saved_data["bits"] = bits;
    if (clip_max_logit.has_value()) ctx->saved_data["max_sizes"] = clip_max_logit->sizes();
    if (clip_min_logit.has_value()) ctx->saved_data["min_sizes"] = clip_min_logit->sizes();
    return y;
  }

  static variable_list backward(AutogradContext* ctx, variable_list gradients) {
    const variable_list saved = ctx->get_saved_variables();
    const at::Tensor &x = saved[0], &clip_max = saved[1], &clip_min = saved[2];
    const at::Tensor g = gradients[0].contiguous();
    const int bits = static_cast<int>(ctx->saved_data["bits"].toInt());
    const int64_t n = x.size(-1), rows = x.numel() / n;
    const at::Tensor dx = at::empty_like(x);
    const at::Tensor dmax = at::empty({rows}, x.options()), dmin = at::empty({rows}, x.options());
    const Factors factors(clip_max, clip_min);
    const float* from = x.data_ptr<float>();
    const void* dy = g.data_ptr();
    const bool rounded = g.scalar_type() == at::kBFloat16;
    const auto* range = reinterpret_cast<const Range*>(saved[3].data_ptr<float>());
    float *to = dx.data_ptr<float>(), *to_max = dmax.data_ptr<float>(),
          *to_min = dmin.data_ptr<float>();
    ParallelFor(rows, RowGrain(n), [&](int64_t begin, int64_t end) {
      std::vector<float> widened(rounded ? n : 0);
      for (int64_t i = begin; i < end; ++i) {
        const float* gradient = widened.data();
        if (rounded) {
          BF16ToFloat(static_cast<const uint16_t*>(dy) + i * n, widened.data(),
                      static_cast<size_t>(n));
        } else {
          gradient = static_cast<const float*>(dy) + i * n;
        }
        const float up = factors.max[i * factors.max_step];
        const float down = factors.min[i * factors.min_step];
        const RowGrid grid = MakeGrid<kKind>(range[i].max * up, range[i].min * down, bits);
        const float* row = from + i * n;
        const RangeGradient flow = QuantizeRowBackward<kKind>(row, gradient, n, grid, to + i * n);
        to_max[i] = flow.hi * range[i].max;
        to_min[i] = flow.lo * range[i].min;
        if (flow.hi != 0 && range[i].max > 0) {
          to[i * n + FindFirst(row, n, range[i].max)] += flow.hi * up;
        }
        if (flow.lo != 0 && range[i].min < 0) {
          to[i * n + FindFirst(row, n, range[i].min)] += flow.lo * down;
        }
      }
    });
    variable_list results(5);
    results[0] = dx;
    const auto logit = [&](const char* sizes, const at::Tensor& per_row, const at::Tensor& factor) {
      const auto found = ctx->saved_data.find(sizes);
      return found == ctx->saved_data.end()
                 ? at::Tensor()
                 : LogitGradient(per_row, factor, found->second.toIntVector());
    };
    results[1] = logit("max_sizes", dmax, clip_max);
    results[2] = logit("min_sizes", dmin, clip_min);
    return results;
  }
};

template <GridKind kKind>
at::Tensor FakeQuant(const at::Tensor& x, const at::Tensor& clip_max_logit,
                     const at::Tensor& clip_min_logit, int bits, at::ScalarType out_dtype) {
  FLATQUANT_CHECK(bits >= 2 && (bits <= 8 || bits == 16));
  if (bits == 16) return x.to(out_dtype);
  if (IsCpuFloat(x) && IsCpuFloat(clip_max_logit) && IsCpuFloat(clip_min_logit) && x.numel() > 0 &&
      (out_dtype == at::kFloat || out_dtype == at::kBFloat16)) {
    return FakeQuantFunction<kKind>::apply(x, ToOptional(clip_max_logit),
                                           ToOptional(clip_min_logit), static_cast<int64_t>(bits),
                                           out_dtype);
  }
  at::Tensor y;
  if constexpr (kKind == GridKind::kActivation) {
    y = composite::FakeQuantActivation(x, clip_max_logit, clip_min_logit, bits);
  } else if constexpr (kKind == GridKind::kKv) {
    y = composite::FakeQuantKv(x, clip_max_logit, clip_min_logit, bits);
  } else {
    y = composite::FakeQuantWeight(x, clip_max_logit, clip_min_logit, bits);
  }
  return y.to(out_dtype);
}

}  // namespace

at::Tensor FakeQuantActivation(const at::Tensor& x, const at::Tensor& clip_max_logit,
                               const at::Tensor& clip_min_logit, int bits,
                               at::ScalarType out_dtype) {
  return FakeQuant<GridKind::kActivation>(x, clip_max_logit, clip_min_logit, bits, out_dtype);
}

at::Tensor FakeQuantKv(const at::Tensor& x, const at::Tensor& clip_max_logit,
                       const at::Tensor& clip_min_logit, int bits, at::ScalarType out_dtype) {
  return FakeQuant<GridKind::kKv>(x, clip_max_logit, clip_min_logit, bits, out_dtype);
}

at::Tensor FakeQuantWeight(const at::Tensor& w, const at::Tensor& clip_max_logit,
                           const at::Tensor& clip_min_logit, int bits, at::ScalarType out_dtype) {
  return FakeQuant<GridKind::kWeight>(w, clip_max_logit, clip_min_logit, bits, out_dtype);
}

}  // namespace flatquant::compress
