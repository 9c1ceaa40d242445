#include "flatquant/compress/ops/fake_quant.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"
#include "flatquant/compress/ops/amp.h"
#include "flatquant/compress/ops/composite.h"
#include "flatquant/compress/ops/cpu_path.h"
#include "flatquant/compress/ops/fake_quant_gpu.h"
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

RowElement ElementOf(at::ScalarType type) {
  if (type == at::kHalf) return RowElement::kHalf;
  return type == at::kBFloat16 ? RowElement::kBFloat16 : RowElement::kFloat;
}

FakeQuantRows RowsOf(GridKind kind, int64_t bits, const at::Tensor& x, const at::Tensor& clip_max,
                     const at::Tensor& clip_min, const at::Tensor& ranges, at::ScalarType type) {
  FakeQuantRows rows;
  rows.kind = kind;
  rows.bits = static_cast<int>(bits);
  rows.n = x.size(-1);
  rows.rows = x.numel() / rows.n;
  rows.x = x.data_ptr<float>();
  rows.max_factor = clip_max.data_ptr<float>();
  rows.min_factor = clip_min.data_ptr<float>();
  rows.max_step = clip_max.numel() > 1;
  rows.min_step = clip_min.numel() > 1;
  rows.ranges = reinterpret_cast<Range*>(ranges.data_ptr<float>());
  rows.element = ElementOf(type);
  return rows;
}

// GpuFakeQuant and GpuFakeQuantBackward on the CPU.
template <GridKind kKind>
void CpuFakeQuant(const FakeQuantRows& all, void* y) {
  const FakeQuantRows r = all;
  ParallelFor(r.rows, RowGrain(r.n), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float* row = r.x + i * r.n;
      r.ranges[i] = FindRange(row, r.n);
      const RowGrid grid = MakeGrid<kKind>(r.ranges[i].max * r.max_factor[i * r.max_step],
                                           r.ranges[i].min * r.min_factor[i * r.min_step], r.bits);
      if (r.element == RowElement::kBFloat16) {
        QuantizeRow<kKind>(row, r.n, grid, static_cast<uint16_t*>(y) + i * r.n);
      } else {
        QuantizeRow<kKind>(row, r.n, grid, static_cast<float*>(y) + i * r.n);
      }
    }
  });
}

template <GridKind kKind>
void CpuFakeQuantBackward(const FakeQuantRows& all, const void* dy, float* dx, float* dmax,
                          float* dmin) {
  const FakeQuantRows r = all;
  ParallelFor(r.rows, RowGrain(r.n), [&](int64_t begin, int64_t end) {
    const bool widens = r.element == RowElement::kBFloat16;
    std::vector<float> widened(widens ? r.n : 0);
    for (int64_t i = begin; i < end; ++i) {
      const float* gradient = widened.data();
      if (widens) {
        BF16ToFloat(static_cast<const uint16_t*>(dy) + i * r.n, widened.data(),
                    static_cast<size_t>(r.n));
      } else {
        gradient = static_cast<const float*>(dy) + i * r.n;
      }
      const Range& range = r.ranges[i];
      const float up = r.max_factor[i * r.max_step], down = r.min_factor[i * r.min_step];
      const RowGrid grid = MakeGrid<kKind>(range.max * up, range.min * down, r.bits);
      const float* row = r.x + i * r.n;
      float* to = dx + i * r.n;
      const RangeGradient flow = QuantizeRowBackward<kKind>(row, gradient, r.n, grid, to);
      dmax[i] = flow.hi * range.max;
      dmin[i] = flow.lo * range.min;
      if (flow.hi != 0 && range.max > 0) to[FindFirst(row, r.n, range.max)] += flow.hi * up;
      if (flow.lo != 0 && range.min < 0) to[FindFirst(row, r.n, range.min)] += flow.lo * down;
    }
  });
}

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
    const at::Tensor y = at::empty_like(x, x.options().dtype(out_dtype));
    const at::Tensor ranges = at::empty({x.numel() / x.size(-1), 2}, x.options());
    const FakeQuantRows rows = RowsOf(kKind, bits, x, clip_max, clip_min, ranges, out_dtype);
    if (x.is_cpu()) {
      CpuFakeQuant<kKind>(rows, y.data_ptr());
    } else {
      GpuFakeQuant(rows, x.get_device(), y.data_ptr());
    }
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
    const FakeQuantRows rows = RowsOf(kKind, ctx->saved_data["bits"].toInt(), x, clip_max, clip_min,
                                      saved[3], g.scalar_type());
    const at::Tensor dx = at::empty_like(x);
    const at::Tensor dmax = at::empty({rows.rows}, x.options()), dmin = at::empty_like(dmax);
    float *to = dx.data_ptr<float>(), *to_max = dmax.data_ptr<float>(),
          *to_min = dmin.data_ptr<float>();
    if (x.is_cpu()) {
      CpuFakeQuantBackward<kKind>(rows, g.data_ptr(), to, to_max, to_min);
    } else {
      GpuFakeQuantBackward(rows, x.get_device(), g.data_ptr(), to, to_max, to_min);
    }
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

// Undefined tensors count.
bool IsFloatOn(const at::Tensor& t, const at::Device& device) {
  return !t.defined() || (t.device() == device && t.scalar_type() == at::kFloat);
}

template <GridKind kKind>
at::Tensor FakeQuant(const at::Tensor& x, const at::Tensor& clip_max_logit,
                     const at::Tensor& clip_min_logit, int bits, at::ScalarType out_dtype) {
  FLATQUANT_CHECK(bits >= 2 && (bits <= 8 || bits == 16));
  if (bits == 16) return x.to(out_dtype);
  const bool has_kernels = x.is_cpu() ? out_dtype != at::kHalf : x.is_cuda() && HasGpuFakeQuant();
  if (has_kernels && IsFloatOn(x, x.device()) && IsFloatOn(clip_max_logit, x.device()) &&
      IsFloatOn(clip_min_logit, x.device()) && x.numel() > 0 &&
      (out_dtype == at::kFloat || IsSixteenBits(out_dtype))) {
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
