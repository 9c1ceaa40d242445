#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "flatquant/model/config.h"

namespace flatquant {

// The linear layers of a decoder block.
enum class Linear : uint8_t { kQ, kK, kV, kO, kGate, kUp, kDown };
inline constexpr std::array<Linear, 7> kLinears = {
    Linear::kQ, Linear::kK, Linear::kV, Linear::kO, Linear::kGate, Linear::kUp, Linear::kDown};

// The points of a block where one activation feeds a group of linears; all that
// quantization does is attached to a site or to the cache (ARCHITECTURE.md).
enum class Site : uint8_t { kAttnIn, kAttnOut, kMlpIn, kMlpOut };
inline constexpr std::array<Site, 4> kSites = {Site::kAttnIn, Site::kAttnOut, Site::kMlpIn,
                                               Site::kMlpOut};

// The normalisations of a block; q and k norms exist only with qk_norm.
enum class Norm : uint8_t { kInput, kPostAttention, kQ, kK };

Site SiteOf(Linear linear);
std::span<const Linear> LinearsOf(Site site);

// "q_proj", "attn_in", ...: the names in files and reports.
std::string_view LinearName(Linear linear);
std::string_view SiteName(Site site);

// Elements per token of the activation at a site.
int64_t SiteWidth(const ModelConfig& config, Site site);

// Rows (output features) and columns (input features) of a weight.
struct LinearShape {
  int64_t rows;
  int64_t cols;
};
LinearShape ShapeOf(const ModelConfig& config, Linear linear);
bool HasBias(const ModelConfig& config, Linear linear);

// Hugging Face tensor names: "model.layers.3.self_attn.q_proj" (without the
// ".weight" or ".bias"), "model.layers.3.input_layernorm".
std::string LinearPath(int64_t layer, Linear linear);
std::string NormPath(int64_t layer, Norm norm);
inline constexpr std::string_view kEmbeddingPath = "model.embed_tokens";
inline constexpr std::string_view kFinalNormPath = "model.norm";
inline constexpr std::string_view kLmHeadPath = "lm_head";

}  // namespace flatquant
