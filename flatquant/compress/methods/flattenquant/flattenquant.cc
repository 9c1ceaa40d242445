#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <array>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/channel_balance.h"
#include "flatquant/compress/methods/flattenquant/divergence.h"
#include "flatquant/compress/methods/flattenquant/thresholds.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant::compress {
namespace {

// How much of an activation's range moves into the weights, as SmoothQuant does.
constexpr double kMigration = 0.5;

// The width of sites that the scheme's costs too much.
constexpr int kWideBits = 8;

// How many more pieces a tensor may have than channels, see ChooseThreshold and
// docs/quality.md: the price of the multiply-adds against the size of the steps.
struct Growth {
  double act;
  double weight;
};
constexpr Growth kNarrow = {1.25, 1.0};
constexpr Growth kWide = {1.05, 1.0};

// FlattenQuant (Zhang et al., LREC-COLING 2024), see README.md.
class FlattenQuant : public Method {
 public:
  bool NeedsCalibration() const override { return true; }
  int64_t StepsPerBlock(const QuantizeOptions&, int64_t) const override { return 0; }

  BlockParameters Choose(const BlockTask& task, BlockReport*) const override {
    CheckOptions(task.options);
    at::NoGradGuard no_grad;
    BlockParameters parameters;
    for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
      parameters.site(site).diagonal = ChannelBalance(task, site, kMigration);
    }
    const BlockTensors folded = Fold(task.config, task.weights, parameters, at::kFloat);
    const int bits = task.options.scheme.act_bits;
    std::array<SiteFlattening, 4> chosen;
    for (const Site site : kSites) {
      SiteFlattening& flattening = chosen[static_cast<size_t>(site)];
      flattening = Flattened(task, parameters, folded, site, bits);
      if (bits == kWideBits) continue;
      const double divergence = SiteDivergence(task, parameters, site, flattening);
      if (divergence <= task.options.flatten_kl) continue;
      flattening = Flattened(task, parameters, folded, site, kWideBits);
    }
    for (const Site site : kSites) {
      parameters.site(site).flattening = std::move(chosen[static_cast<size_t>(site)]);
    }
    return parameters;
  }

 private:
  static void CheckOptions(const QuantizeOptions& options) {
    const Scheme& scheme = options.scheme;
    if (scheme.weight_bits != scheme.act_bits || scheme.act_bits > kWideBits) {
      throw Error("quantize.bad_option", "--scheme " + scheme.Name(),
                  "method flattenquant multiplies integers of one width",
                  "ask for weights and activations alike, as in w4a4, w4a4kv4 or w8a8");
    }
    if (options.LearnsWeights()) {
      throw Error("quantize.bad_option", "--weights learned", "method flattenquant does not train",
                  "use --weights gptq");
    }
    if (options.group_size > 0) {
      throw Error("quantize.bad_option", "--group-size " + std::to_string(options.group_size),
                  "method flattenquant has one scale for a whole weight", "leave it out");
    }
  }

  // folded: the block with the diagonals of `parameters`.
  static SiteFlattening Flattened(const BlockTask& task, const BlockParameters& parameters,
                                  const BlockTensors& folded, Site site, int bits) {
    const Growth growth = bits == kWideBits ? kWide : kNarrow;
    const int top = LargestCode(bits);
    const at::Tensor& diagonal = parameters.site(site).diagonal;
    at::Tensor maxima = task.stream->site_maxima(site);
    if (diagonal.defined()) maxima = maxima * diagonal.abs();
    std::vector<Threshold> weights;
    const auto cut = task.options.flatten_rows ? std::span<const Linear>() : LinearsOf(site);
    for (const Linear which : cut) {
      const at::Tensor& weight = folded.weights[static_cast<size_t>(which)];
      weights.push_back(ChooseThreshold(weight.abs().amax(0), growth.weight, top));
    }
    return MakeFlattening(bits, ChooseThreshold(maxima, growth.act, top), weights);
  }
};

}  // namespace

std::unique_ptr<Method> MakeFlattenQuant() { return std::make_unique<FlattenQuant>(); }

}  // namespace flatquant::compress
