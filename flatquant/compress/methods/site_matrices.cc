#include "flatquant/compress/methods/site_matrices.h"

#include "flatquant/model/network.h"

namespace flatquant::compress {

bool QuantizesLinears(const Scheme& scheme) {
  return scheme.weight_bits < 16 || scheme.act_bits < 16;
}

void AddSiteMatrices(const ModelConfig& config, const Scheme& scheme,
                     const std::function<KronShape(int64_t)>& split,
                     const std::function<InvertibleMatrix(int64_t)>& make,
                     BlockParameters* parameters) {
  const auto matrix = [&make](int64_t n) { return n == 1 ? InvertibleMatrix() : make(n); };
  const bool linears = QuantizesLinears(scheme);
  if (linears) {
    for (const Site site : {Site::kAttnIn, Site::kMlpIn, Site::kMlpOut}) {
      const KronShape shape = split(SiteWidth(config, site));
      parameters->site(site).left = matrix(shape.left);
      parameters->site(site).right = matrix(shape.right);
    }
    parameters->site(Site::kAttnOut).left = matrix(config.heads);
  }
  if (scheme.k_bits < 16) parameters->key = matrix(config.head_dim);
  if (linears || scheme.v_bits < 16) parameters->value = matrix(config.head_dim);
}

}  // namespace flatquant::compress
