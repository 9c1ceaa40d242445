#include <ATen/ATen.h>

#include <memory>

#include "flatquant/compress/methods/channel_balance.h"
#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {
namespace {

// How much of an activation's range moves into the weights; SmoothQuant's own value
// for most networks.
constexpr double kMigration = 0.5;

// SmoothQuant (Xiao et al., ICML 2023): a diagonal per site, nothing online.
class SmoothQuant : public Method {
 public:
  bool NeedsCalibration() const override { return true; }
  int64_t StepsPerBlock(const QuantizeOptions&, int64_t) const override { return 0; }

  BlockParameters Choose(const BlockTask& task, BlockReport*) const override {
    BlockParameters parameters;
    for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
      parameters.site(site).diagonal = ChannelBalance(task, site, kMigration);
    }
    return parameters;
  }
};

}  // namespace

std::unique_ptr<Method> MakeSmoothQuant() { return std::make_unique<SmoothQuant>(); }

}  // namespace flatquant::compress
