#include <memory>

#include "flatquant/base/rng.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/methods/quarot/hadamard.h"

namespace flatquant::compress {
namespace {

InvertibleMatrix Rotation(int64_t n, Rng& rng) {
  return n == 1 ? InvertibleMatrix() : InvertibleMatrix::Fixed(RandomRotation(n, rng), "quarot");
}

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
    const ModelConfig& config = task.config;
    const Scheme& scheme = task.options.scheme;
    const bool linears = scheme.weight_bits < 16 || scheme.act_bits < 16;
    BlockParameters parameters;
    if (linears) {
      for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
        const KronShape shape = KronFactors(SiteWidth(config, site));
        parameters.site(site).left = Rotation(shape.left, rng);
        parameters.site(site).right = Rotation(shape.right, rng);
      }
      parameters.site(Site::kAttnOut).left = Rotation(config.heads, rng);
    }
    if (scheme.k_bits < 16) parameters.key = Rotation(config.head_dim, rng);
    if (linears || scheme.v_bits < 16) parameters.value = Rotation(config.head_dim, rng);
    return parameters;
  }
};

}  // namespace

std::unique_ptr<Method> MakeQuaRot() { return std::make_unique<QuaRot>(); }

}  // namespace flatquant::compress
