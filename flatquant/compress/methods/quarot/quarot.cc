#include <ATen/ATen.h>

#include <memory>

#include "flatquant/base/rng.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/methods/quarot/hadamard.h"
#include "flatquant/compress/methods/site_matrices.h"

namespace flatquant::compress {
namespace {

// QuaRot (Ashkboos et al., NeurIPS 2024): random Hadamard rotations of every site and
// of the heads' K and V, no data. QuaRot fuses the rotations of attn_in and mlp_in into
// the weights around the residual stream; here they are a site's Kronecker pair like
// any other and run online: what is quantized has the same distribution, and the
// runtime needs no case of its own.
class QuaRot : public Method {
 public:
  bool NeedsCalibration() const override { return false; }
  int64_t StepsPerBlock(const QuantizeOptions&, int64_t) const override { return 0; }

  BlockParameters Choose(const BlockTask& task, BlockReport*) const override {
    Rng rng(task.options.seed * 0x9e3779b97f4a7c15u + static_cast<uint64_t>(task.layer));
    BlockParameters parameters;
    AddSiteMatrices(
        task.config, task.options.scheme, HadamardFactors,
        [&](int64_t n) {
          return InvertibleMatrix::Fixed(RandomRotation(n, rng).to(task.device), "quarot");
        },
        &parameters);
    return parameters;
  }
};

}  // namespace

std::unique_ptr<Method> MakeQuaRot() { return std::make_unique<QuaRot>(); }

}  // namespace flatquant::compress
