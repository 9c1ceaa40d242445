#include "flatquant/compress/weights/gptq_block.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/compress/ops/linear.h"

namespace flatquant::compress {
namespace {

// H = sum of x^T x, [cols, cols] float64, of what the linears of a site multiply: one
// matrix per activation clip of the site.
std::vector<at::Tensor> SiteHessians(const ModelConfig& config, const BlockTensors& block,
                                     Site wanted, const ResidualStream& stream, int64_t batch) {
  const BlockTensors::SiteTensors& site = block.site(wanted);
  std::vector<at::Tensor> hessians(site.clips.size());
  const auto observe = [&](Site seen, const at::Tensor& x) {
    if (seen != wanted) return;
    for (size_t i = 0; i < hessians.size(); ++i) {
      // Products of one batch in float32, their sum over batches in float64.
      const at::Tensor columns =
          SiteInput(site, site.clips[i], x, at::kFloat).flatten(0, 1).t().contiguous();
      const at::Tensor product = LinearOp(columns, columns, {}, /*amp=*/false).to(at::kDouble);
      hessians[i] = hessians[i].defined() ? hessians[i] + product : product;
    }
  };
  for (int64_t begin = 0; begin < stream.windows(); begin += batch) {
    const int64_t count = std::min(batch, stream.windows() - begin);
    BlockForward(config, block, stream.rope(),
                 stream.Batch(stream.quantized_inputs(), begin, count),
                 /*amp=*/false, observe);
  }
  return hessians;
}

}  // namespace

QuantizedWeights GptqBlock(const ModelConfig& config, const BlockTensors& folded,
                           const BlockParameters& parameters, const Scheme& scheme,
                           const ResidualStream& stream, const GptqBlockOptions& options,
                           const std::string& where) {
  at::NoGradGuard no_grad;
  QuantizedWeights quantized;
  BlockTensors block = FloatForward(folded, parameters, scheme);
  for (const Site site : kSites) {
    const std::vector<at::Tensor> hessians =
        SiteHessians(config, block, site, stream, options.batch);
    const auto linears = LinearsOf(site);
    for (size_t i = 0; i < linears.size(); ++i) {
      const size_t which = static_cast<size_t>(linears[i]);
      WeightGrid grid = WeightGridOf(folded.weights[which], parameters, linears[i], scheme);
      // Learned clips cut the weights themselves, as when they were learned: GPTQ makes up
      // for rounding alone.
      const at::Tensor weight =
          at::minimum(at::maximum(folded.weights[which], grid.low), grid.high);
      if (options.mse && !parameters.site(site).flattening.defined())
        grid = ShrinkToLeastError(weight, grid);
      quantized[which] = Gptq(weight, grid, hessians[hessians.size() == 1 ? 0 : i], options.gptq,
                              where + ", " + std::string(LinearName(linears[i])));
      block.weights[which] = quantized[which].Values();
    }
  }
  return quantized;
}

}  // namespace flatquant::compress
