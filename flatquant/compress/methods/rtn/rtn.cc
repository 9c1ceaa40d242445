#include <memory>

#include "flatquant/compress/methods/method.h"

namespace flatquant::compress {
namespace {

// Plain round to nearest: no transform, no clip, no data.
class Rtn : public Method {
 public:
  bool NeedsCalibration() const override { return false; }
  int64_t StepsPerBlock(const QuantizeOptions&, int64_t) const override { return 0; }
  BlockParameters Choose(const BlockTask&, BlockReport*) const override { return {}; }
};

}  // namespace

std::unique_ptr<Method> MakeRtn() { return std::make_unique<Rtn>(); }

}  // namespace flatquant::compress
