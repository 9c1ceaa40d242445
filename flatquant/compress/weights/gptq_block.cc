#include "flatquant/compress/weights/gptq_block.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/compress/ops/linear.h"

namespace flatquant::compress {
namespace {

// Columns of the Hessian that are computed together: wide enough for matrix products at
// full speed, narrow enough that little is computed on both sides of the diagonal.
constexpr int64_t kPanel = 256;

// hessian += x^T x in its upper triangle, by panels of rows. columns: x^T [cols, tokens],
// float32; products of one batch are in float32, their sum over batches in float64.
void AddUpperTriangle(const at::Tensor& columns, const at::Tensor& hessian) {
  const int64_t cols = columns.size(0);
  for (int64_t begin = 0; begin < cols; begin += kPanel) {
    const int64_t count = std::min(kPanel, cols - begin);
    const at::Tensor product = LinearOp(columns.narrow(0, begin, count),
                                        columns.narrow(0, begin, cols - begin), {}, Amp::kOff);
    hessian.narrow(0, begin, count).narrow(1, begin, cols - begin).add_(product);
  }
}

// H = sum of x^T x, [cols, cols] float64, of what the linears of a site multiply: one
// matrix per activation clip of the site.
std::vector<at::Tensor> SiteHessians(const ModelConfig& config, const BlockTensors& block,
                                     Site which, const ResidualStream& stream, int64_t batch) {
  const BlockTensors::SiteTensors& site = block.site(which);
  const int64_t cols = block.weights[static_cast<size_t>(LinearsOf(which)[0])].size(1);
  std::vector<at::Tensor> hessians;
  for (size_t i = 0; i < site.clips.size(); ++i) {
    hessians.push_back(at::zeros({cols, cols}, stream.rope().cos.options().dtype(at::kDouble)));
  }
  for (int64_t begin = 0; begin < stream.windows(); begin += batch) {
    const int64_t count = std::min(batch, stream.windows() - begin);
    const at::Tensor x =
        SiteActivation(config, block, stream.rope(),
                       stream.Batch(stream.quantized_inputs(), begin, count), which, Amp::kOff);
    for (size_t i = 0; i < hessians.size(); ++i) {
      const at::Tensor rows = SiteInput(site, site.clips[i], x, at::kFloat).flatten(0, 1);
      AddUpperTriangle(rows.t().contiguous(), hessians[i]);
    }
  }
  for (at::Tensor& hessian : hessians) hessian = hessian.triu() + hessian.triu(1).t();
  return hessians;
}

// The linears of a site that multiply the same activation, one below the other: GPTQ
// treats each row by itself, and works best on many.
struct Stack {
  std::vector<Linear> linears;
  at::Tensor weight;
  WeightGrid grid;
};

Stack Stacked(std::vector<Linear> linears, const BlockTensors& folded,
              const BlockParameters& parameters, const Scheme& scheme, int64_t group_size) {
  std::vector<at::Tensor> weights, scales, highs, lows;
  Stack stack;
  for (const Linear which : linears) {
    weights.push_back(folded.weights[static_cast<size_t>(which)]);
    const WeightGrid grid = WeightGridOf(weights.back(), parameters, which, scheme, group_size);
    stack.grid.bits = grid.bits;
    stack.grid.group_size = grid.group_size;
    scales.push_back(grid.scale);
    highs.push_back(grid.high);
    lows.push_back(grid.low);
  }
  stack.linears = std::move(linears);
  stack.grid.scale = at::cat(scales);
  stack.grid.high = at::cat(highs);
  stack.grid.low = at::cat(lows);
  // Learned clips cut the weights themselves, as when they were learned: GPTQ makes up
  // for rounding alone.
  const at::Tensor weight = at::cat(weights);
  const auto each = [&](const at::Tensor& of_groups) {
    return OverColumns(of_groups, stack.grid.group_size, weight.size(1));
  };
  stack.weight = at::minimum(at::maximum(weight, each(stack.grid.low)), each(stack.grid.high));
  return stack;
}

// The rows of a stack's codes that are those of each linear.
void Unstack(const Stack& stack, const BlockTensors& folded, const QuantizedWeight& chosen,
             QuantizedWeights* quantized) {
  int64_t begin = 0;
  for (const Linear which : stack.linears) {
    const size_t i = static_cast<size_t>(which);
    const int64_t rows = folded.weights[i].size(0);
    (*quantized)[i] = {chosen.bits, chosen.codes.narrow(0, begin, rows),
                       chosen.scale.narrow(0, begin, rows), chosen.group_size};
    begin += rows;
  }
}

}  // namespace

QuantizedWeights GptqBlock(const ModelConfig& config, const BlockTensors& folded,
                           const BlockParameters& parameters, const Scheme& scheme,
                           const GptqBlockOptions& options, const std::string& where,
                           ResidualStream* stream) {
  at::NoGradGuard no_grad;
  QuantizedWeights quantized;
  BlockTensors block = FloatForward(folded, parameters, scheme);
  for (const Site site : kSites) {
    const std::vector<at::Tensor> hessians =
        SiteHessians(config, block, site, *stream, options.batch);
    GptqOptions gptq = options.gptq;
    if (!parameters.site(site).flattening.weight_scales.empty()) gptq.mse = false;
    const auto linears = LinearsOf(site);
    const size_t together = hessians.size() == 1 ? linears.size() : 1;
    for (size_t i = 0; i < hessians.size(); ++i) {
      const auto first = linears.begin() + static_cast<std::ptrdiff_t>(i);
      const Stack stack = Stacked({first, first + static_cast<std::ptrdiff_t>(together)}, folded,
                                  parameters, scheme, options.group_size);
      Unstack(stack, folded,
              Gptq(stack.weight, stack.grid, hessians[i], gptq,
                   where + ", " + std::string(SiteName(site))),
              &quantized);
    }
    for (const Linear which : linears) {
      const size_t i = static_cast<size_t>(which);
      block.weights[i] = quantized[i].Values();
    }
    if (site == Site::kAttnOut) {
      stream->RunQuantizedHalf(block, BlockHalf::kAttention, options.batch);
    } else if (site == Site::kMlpOut && options.is_followed) {
      stream->RunQuantizedHalf(block, BlockHalf::kMlp, options.batch);
    }
  }
  return quantized;
}

}  // namespace flatquant::compress
