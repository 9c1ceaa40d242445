#include "flatquant/compress/weights/gptq.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

// The upper Cholesky factor of the inverse of the damped Hessian.
at::Tensor InverseFactor(const at::Tensor& hessian, double damping, const std::string& where) {
  const at::Tensor mean = hessian.diagonal().mean();
  const at::Tensor damped =
      hessian + at::eye(hessian.size(0), hessian.options()) * (mean * damping);
  const auto [lower, fault] = at::linalg_cholesky_ex(damped);
  const auto [upper, later_fault] =
      at::linalg_cholesky_ex(at::cholesky_inverse(lower), /*upper=*/true);
  if (at::maximum(fault, later_fault).item<int>() == 0) return upper;  // the one wait for a GPU
  throw Error("gptq.singular", where, "the Hessian of its inputs is not positive definite",
              "calibrate on more text (--nsamples)");
}

// The scales [cols, rows] that the columns are rounded with, in the order in which they are
// rounded; those of groups whose grid is still to be found are filled in on the way.
class ColumnScales {
 public:
  // order: of the columns, undefined for left to right.
  ColumnScales(const WeightGrid& grid, const at::Tensor& order, int64_t cols, bool mse)
      : grid_(grid),
        mse_(mse),
        finds_groups_(grid.group_size > 0 && !order.defined()),
        by_column_(OverColumns(grid.scale.to(at::kDouble), grid.group_size, cols).t()) {
    if (order.defined() && grid.group_size > 0) by_column_ = by_column_.index_select(0, order);
    by_column_ = by_column_.contiguous();
  }

  // Columns that may be rounded before a grid must be looked at: up to `limit`, from begin.
  int64_t Together(int64_t begin, int64_t limit) const {
    if (!finds_groups_) return limit;
    return std::min(limit, grid_.group_size - begin % grid_.group_size);
  }

  // All columns before `begin` have had their effect on rest [cols, rows].
  void Reach(int64_t begin, const at::Tensor& rest) {
    if (!finds_groups_ || begin % grid_.group_size != 0) return;
    const int64_t count = std::min(grid_.group_size, rest.size(0) - begin);
    const at::Tensor weight = rest.narrow(0, begin, count).t();
    WeightGrid found = MakeWeightGrid(weight, {}, grid_.bits);
    if (mse_) found = ShrinkToLeastError(weight, found);
    grid_.scale.narrow(1, begin / grid_.group_size, 1).copy_(found.scale);
    by_column_.narrow(0, begin, count).copy_(found.scale.t().expand({count, -1}));
  }

  at::Tensor of(int64_t column) const {
    return by_column_.select(0, by_column_.size(0) > 1 ? column : 0);
  }

  // [rows, groups]
  const at::Tensor& scale() const { return grid_.scale; }

 private:
  WeightGrid grid_;
  const bool mse_;
  const bool finds_groups_;
  at::Tensor by_column_;
};

}  // namespace

QuantizedWeight Gptq(const at::Tensor& weight, const WeightGrid& given, const at::Tensor& hessian,
                     const GptqOptions& options, const std::string& where) {
  FLATQUANT_CHECK(hessian.size(0) == weight.size(1) && hessian.scalar_type() == at::kDouble);
  at::NoGradGuard no_grad;
  const int64_t cols = weight.size(1);
  const bool finds_groups = given.group_size > 0 && !options.act_order;
  WeightGrid grid = options.mse && !finds_groups ? ShrinkToLeastError(weight, given) : given;
  if (finds_groups) grid.scale = grid.scale.clone();  // which will be filled in

  at::Tensor h = hessian;
  at::Tensor open = weight.to(at::kDouble);  // [rows, cols], what is still to be rounded
  const at::Tensor dead = h.diagonal() == 0;
  h = h + at::diag(dead.to(at::kDouble));
  open = at::where(dead, at::zeros_like(open), open);

  at::Tensor order;
  if (options.act_order) {
    order = at::argsort(h.diagonal(), /*dim=*/0, /*descending=*/true);
    h = h.index_select(0, order).index_select(1, order);
    open = open.index_select(1, order);
  }
  const at::Tensor factor = InverseFactor(h, options.damping, where);
  ColumnScales scales(grid, order, cols, options.mse);

  // Columns are rows here, so that each is contiguous.
  at::Tensor rest = open.t().contiguous();
  const at::Tensor codes = at::empty_like(rest, rest.options().dtype(at::kChar));
  for (int64_t begin = 0, end; begin < cols; begin = end) {
    scales.Reach(begin, rest);
    end = begin + scales.Together(begin, std::min(options.block_columns, cols - begin));
    const at::Tensor errors = at::empty_like(rest.narrow(0, begin, end - begin));
    for (int64_t j = begin; j < end; ++j) {
      const at::Tensor column = rest.select(0, j);
      const at::Tensor scale = scales.of(j);
      const at::Tensor code =
          (column / scale).round().clamp(SmallestCode(grid.bits), LargestCode(grid.bits));
      const at::Tensor error = (column - code * scale) / factor.select(0, j).select(0, j);
      codes.select(0, j).copy_(code);
      errors.select(0, j - begin).copy_(error);
      at::Tensor later = rest.narrow(0, j, end - j);
      later.addr_(factor.select(0, j).narrow(0, j, end - j), error, 1, -1);
    }
    if (end == cols) break;
    at::Tensor later = rest.narrow(0, end, cols - end);
    const at::Tensor to_later = factor.narrow(0, begin, end - begin).narrow(1, end, cols - end);
    later.addmm_(to_later.t(), errors, 1, -1);
  }

  at::Tensor chosen = codes.t();
  if (options.act_order) chosen = at::empty_like(chosen).index_copy_(1, order, chosen);
  return {grid.bits, chosen.contiguous(), scales.scale(), grid.group_size};
}

WeightGrid ShrinkToLeastError(const at::Tensor& weight, const WeightGrid& grid) {
  at::NoGradGuard no_grad;
  constexpr int kSteps = 80;
  constexpr double kStep = 0.01;
  constexpr double kExponent = 2.4;
  const int64_t cols = weight.size(1), groups = grid.scale.size(1);
  const int64_t missing = grid.group_size > 0 ? groups * grid.group_size - cols : 0;
  // [rows, groups, columns of a group]; zeros that fill up the last one are without error.
  const at::Tensor parts =
      at::constant_pad_nd(weight, {0, missing}).view({weight.size(0), groups, -1});
  at::Tensor best_error, best_factor = at::ones_like(grid.scale);
  for (int i = 0; i < kSteps; ++i) {
    const at::Tensor scale = (grid.scale * (1 - kStep * i)).unsqueeze(2);
    const at::Tensor rounded =
        (parts / scale).round().clamp(SmallestCode(grid.bits), LargestCode(grid.bits)) * scale;
    const at::Tensor error = (parts - rounded).abs().pow(kExponent).sum(2);
    if (i == 0) {
      best_error = error;
      continue;
    }
    const at::Tensor better = error < best_error;
    best_error = at::where(better, error, best_error);
    best_factor = at::where(better, at::full_like(best_factor, 1 - kStep * i), best_factor);
  }
  WeightGrid shrunk = grid;
  shrunk.scale = grid.scale * best_factor;
  shrunk.high = grid.high * best_factor;
  shrunk.low = grid.low * best_factor;
  return shrunk;
}

double HessianError(const at::Tensor& weight, const QuantizedWeight& quantized,
                    const at::Tensor& hessian) {
  const at::Tensor error = weight.to(at::kDouble) - quantized.Values().to(at::kDouble);
  return (at::matmul(error, hessian.to(at::kDouble)) * error).sum().item<double>();
}

}  // namespace flatquant::compress
