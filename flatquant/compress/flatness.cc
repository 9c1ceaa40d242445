#include "flatquant/compress/flatness.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/model/network.h"

namespace flatquant::compress {
namespace {

// Sums of squares over all but the last dimension.
at::Tensor ChannelEnergies(const at::Tensor& rows) {
  return rows.reshape({-1, rows.size(-1)}).square().sum(0, /*keepdim=*/false, at::kDouble);
}

void WithoutQuantizers(BlockTensors* block) {
  for (BlockTensors::SiteTensors& site : block->sites) {
    site.act_bits = 16;
    site.clips.assign(1, ClipLogits{});
  }
  block->k_bits = block->v_bits = 16;
}

}  // namespace

std::array<SiteMagnitudes, 4> ChannelMagnitudes(const ModelConfig& config, BlockTensors block,
                                                const RopeTables& rope, const at::Tensor& x) {
  at::NoGradGuard no_grad;
  WithoutQuantizers(&block);
  std::array<SiteMagnitudes, 4> sites;
  const auto observe = [&](Site which, const at::Tensor& activation) {
    const at::Tensor energies = ChannelEnergies(
        SiteInput(block.site(which), ClipLogits{}, activation, activation.scalar_type()));
    at::Tensor& sum = sites[static_cast<size_t>(which)].activation;
    sum = sum.defined() ? sum + energies : energies;
  };
  for (int64_t window = 0; window < x.size(0); ++window) {
    BlockForward(config, block, rope, x.narrow(0, window, 1), Amp::kOff, observe);
  }
  for (const Site which : kSites) {
    SiteMagnitudes& site = sites[static_cast<size_t>(which)];
    site.activation = site.activation.sqrt();
    for (const Linear linear : LinearsOf(which)) {
      const at::Tensor energies = ChannelEnergies(block.weights[static_cast<size_t>(linear)]);
      site.weight = site.weight.defined() ? site.weight + energies : energies;
    }
    site.weight = site.weight.sqrt();
  }
  return sites;
}

double Flatness(const at::Tensor& magnitudes) {
  const at::Tensor m = magnitudes.to(at::kDouble);
  FLATQUANT_CHECK(m.dim() == 1 && m.size(0) >= 1);
  const double rms = m.square().mean().sqrt().item<double>();
  if (rms == 0) return 0;
  return (m / rms - 1).square().mean().sqrt().item<double>();
}

std::array<SiteFlatness, 4> CompareFlatness(const ModelConfig& config, const BlockTensors& original,
                                            const BlockTensors& folded, const RopeTables& rope,
                                            const at::Tensor& x) {
  const auto before = ChannelMagnitudes(config, original, rope, x);
  const auto after = ChannelMagnitudes(config, folded, rope, x);
  std::array<SiteFlatness, 4> sites;
  for (size_t i = 0; i < sites.size(); ++i) {
    sites[i] = {Flatness(before[i].activation), Flatness(after[i].activation),
                Flatness(before[i].weight), Flatness(after[i].weight)};
  }
  return sites;
}

}  // namespace flatquant::compress
