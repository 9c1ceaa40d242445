#include "flatquant/model/network.h"

namespace flatquant {
namespace {

// Everything about a linear that does not depend on the model's sizes.
struct LinearFacts {
  Site site;
  std::string_view name;
  std::string_view module;
};

// In the order of enum Linear.
constexpr std::array<LinearFacts, 7> kLinearFacts = {{
    {Site::kAttnIn, "q_proj", "self_attn"},
    {Site::kAttnIn, "k_proj", "self_attn"},
    {Site::kAttnIn, "v_proj", "self_attn"},
    {Site::kAttnOut, "o_proj", "self_attn"},
    {Site::kMlpIn, "gate_proj", "mlp"},
    {Site::kMlpIn, "up_proj", "mlp"},
    {Site::kMlpOut, "down_proj", "mlp"},
}};

// A site's linears are neighbours in kLinears.
struct SiteFacts {
  std::string_view name;
  size_t first_linear;
  size_t linear_count;
};

// In the order of enum Site.
constexpr std::array<SiteFacts, 4> kSiteFacts = {{
    {"attn_in", 0, 3},
    {"attn_out", 3, 1},
    {"mlp_in", 4, 2},
    {"mlp_out", 6, 1},
}};

// In the order of enum Norm.
constexpr std::array<std::string_view, 4> kNormNames = {
    "input_layernorm", "post_attention_layernorm", "self_attn.q_norm", "self_attn.k_norm"};

const LinearFacts& FactsOf(Linear linear) { return kLinearFacts[static_cast<size_t>(linear)]; }
const SiteFacts& FactsOf(Site site) { return kSiteFacts[static_cast<size_t>(site)]; }

std::string BlockPath(int64_t layer) { return "model.layers." + std::to_string(layer) + "."; }

}  // namespace

Site SiteOf(Linear linear) { return FactsOf(linear).site; }

std::span<const Linear> LinearsOf(Site site) {
  const SiteFacts& facts = FactsOf(site);
  return std::span<const Linear>(kLinears).subspan(facts.first_linear, facts.linear_count);
}

std::string_view LinearName(Linear linear) { return FactsOf(linear).name; }

std::string_view SiteName(Site site) { return FactsOf(site).name; }

int64_t SiteWidth(const ModelConfig& config, Site site) {
  return ShapeOf(config, LinearsOf(site).front()).cols;
}

LinearShape ShapeOf(const ModelConfig& config, Linear linear) {
  switch (linear) {
    case Linear::kQ:
      return {config.q_width(), config.hidden};
    case Linear::kK:
    case Linear::kV:
      return {config.kv_width(), config.hidden};
    case Linear::kO:
      return {config.hidden, config.q_width()};
    case Linear::kGate:
    case Linear::kUp:
      return {config.ffn, config.hidden};
    case Linear::kDown:
      break;
  }
  return {config.hidden, config.ffn};
}

bool HasBias(const ModelConfig& config, Linear linear) {
  switch (SiteOf(linear)) {
    case Site::kAttnIn:
      return config.qkv_bias;
    case Site::kAttnOut:
      return config.o_bias;
    case Site::kMlpIn:
    case Site::kMlpOut:
      break;
  }
  return config.mlp_bias;
}

std::string LinearPath(int64_t layer, Linear linear) {
  const LinearFacts& facts = FactsOf(linear);
  std::string path = BlockPath(layer);
  path.append(facts.module).append(".").append(facts.name);
  return path;
}

std::string NormPath(int64_t layer, Norm norm) {
  return BlockPath(layer).append(kNormNames[static_cast<size_t>(norm)]);
}

}  // namespace flatquant
