#pragma once

#include <string>
#include <string_view>

#include "flatquant/base/error.h"
#include "flatquant/model/network.h"

// The original implementation's names of the parts of a block, as they stand in its
// flat_matrices.pth and its real-quantized checkpoints.
namespace flatquant::compress {

inline constexpr std::string_view kKeyTransform = "self_attn.kcache_trans";
inline constexpr std::string_view kValueTransform = "self_attn.vcache_trans";
inline constexpr std::string_view kHeadTransform = "self_attn.o_trans";

struct SiteNames {
  Site site;
  std::string_view transform;
};
inline constexpr SiteNames kKronSites[] = {{Site::kAttnIn, "self_attn.ln_trans"},
                                           {Site::kMlpIn, "mlp.up_gate_trans"},
                                           {Site::kMlpOut, "mlp.down_trans"}};

// "self_attn.q_proj", "mlp.up_proj", ...
inline std::string ModuleOf(Linear which) {
  const std::string path = LinearPath(0, which);
  const std::string_view prefix = "model.layers.0.";
  FLATQUANT_CHECK(path.starts_with(prefix));
  return path.substr(prefix.size());
}

}  // namespace flatquant::compress
