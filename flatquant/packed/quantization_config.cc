#include "flatquant/packed/quantization_config.h"

#include <nlohmann/json.hpp>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/packed/json_fields.h"

namespace flatquant {
namespace {

using nlohmann::ordered_json;

ordered_json SiteJson(const SiteGrid& grid) {
  ordered_json site = {{"act_bits", grid.act_bits},
                       {"left", grid.left},
                       {"right", grid.right},
                       {"clips", grid.clips}};
  if (grid.extra_columns) site["extra_columns"] = *grid.extra_columns;
  return site;
}

ordered_json CacheJson(const CacheGrid& grid) {
  return {{"k_bits", grid.k_bits}, {"v_bits", grid.v_bits}, {"transform", grid.transform}};
}

// What of `block` differs from `base`, or all of it where base is nullptr.
ordered_json BlockJson(const BlockGrid& block, const BlockGrid* base) {
  ordered_json out = ordered_json::object();
  for (Linear linear : kLinears) {
    const size_t i = static_cast<size_t>(linear);
    if (base != nullptr && base->weight_bits[i] == block.weight_bits[i]) continue;
    out["weights"][std::string(LinearName(linear))] = block.weight_bits[i];
  }
  for (Linear linear : kLinears) {
    const size_t i = static_cast<size_t>(linear);
    if (block.weight_groups[i] == (base != nullptr ? base->weight_groups[i] : 0)) continue;
    out["weight_groups"][std::string(LinearName(linear))] = block.weight_groups[i];
  }
  for (Site site : kSites) {
    const size_t i = static_cast<size_t>(site);
    if (base != nullptr && base->sites[i] == block.sites[i]) continue;
    out["sites"][std::string(SiteName(site))] = SiteJson(block.sites[i]);
  }
  if (base == nullptr || !(base->cache == block.cache)) out["cache"] = CacheJson(block.cache);
  return out;
}

// The oldest version of the format that has all this.
int64_t VersionFor(const QuantizationConfig& config) {
  int64_t version = 2;
  for (const BlockGrid& block : config.blocks) {
    for (const int64_t group_size : block.weight_groups) {
      if (group_size != 0) return 4;
    }
    for (const SiteGrid& site : block.sites) {
      if (site.extra_columns) version = 3;
    }
  }
  return version;
}

// The first dimension of a matrix; 0 for one that is undefined.
int64_t Order(const Tensor& matrix) {
  return matrix.defined() && !matrix.shape.empty() ? matrix.shape[0] : 0;
}

}  // namespace

BlockGrid GridOf(const PackedBlock& block) {
  BlockGrid grid;
  for (Linear linear : kLinears) {
    grid.weight_bits[static_cast<size_t>(linear)] = block.linear(linear).bits;
    grid.weight_groups[static_cast<size_t>(linear)] = block.linear(linear).group_size;
  }
  for (Site site : kSites) {
    const PackedSite& from = block.site(site);
    SiteGrid& to = grid.sites[static_cast<size_t>(site)];
    to.act_bits = from.act_bits;
    to.left = Order(from.left);
    to.right = Order(from.right);
    const bool has_clips = from.act_bits != 16 && !from.is_flattened();
    to.clips = has_clips ? static_cast<int64_t>(from.clips.size()) : 0;
    if (from.is_flattened()) to.extra_columns = Order(from.extra_columns);
  }
  grid.cache = {block.cache.k_bits, block.cache.v_bits, block.cache.k_transform.defined()};
  return grid;
}

int64_t ColumnsOf(const BlockGrid& grid, const ModelConfig& config, Linear which) {
  return ShapeOf(config, which).cols +
         grid.sites[static_cast<size_t>(SiteOf(which))].extra_columns.value_or(0);
}

std::string WithQuantizationConfig(std::string_view source_json, const QuantizationConfig& config,
                                   bool tied_embeddings, const std::string& where) {
  FLATQUANT_CHECK(!config.blocks.empty());
  nlohmann::json checked;
  if (const auto fault = ParseStrictJson(source_json, &checked)) {
    throw Error("packed.bad_config", where, fault->what, "mend the source model's config.json");
  }
  if (!checked.is_object()) {
    throw Error("packed.bad_config", where, "is not a JSON object",
                "mend the source model's config.json");
  }
  ordered_json out = ordered_json::parse(source_json);  // the same, in the source's order of keys
  out["tie_word_embeddings"] = tied_embeddings;
  const BlockGrid& base = config.blocks.front();
  ordered_json quantization = {{"quant_method", "flatquant"},
                               {"format_version", VersionFor(config)},
                               {"scheme", config.scheme.Name()}};
  quantization.update(BlockJson(base, nullptr));
  quantization["lm_head"] = {{"bits", config.head.bits}, {"act_bits", config.head.act_bits}};
  for (size_t i = 1; i < config.blocks.size(); ++i) {
    if (config.blocks[i] == base) continue;
    quantization["layers"][std::to_string(i)] = BlockJson(config.blocks[i], &base);
  }
  quantization["provenance"] = ordered_json::object();
  for (const auto& [key, value] : config.provenance) quantization["provenance"][key] = value;
  out["quantization_config"] = std::move(quantization);
  // A provenance that is not UTF-8 (a file name, say) must not lose the model.
  return out.dump(2, ' ', false, ordered_json::error_handler_t::replace) + "\n";
}

}  // namespace flatquant
