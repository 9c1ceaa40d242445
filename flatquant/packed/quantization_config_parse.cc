#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "flatquant/base/checked.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/json_fields.h"
#include "flatquant/packed/quantization_config.h"

namespace flatquant {
namespace {

using nlohmann::json;
using packed_internal::BadConfig;
using packed_internal::JsonFields;

constexpr std::string_view kKey = "quantization_config";
constexpr std::string_view kMethod = "flatquant";

json ParseObject(std::string_view text, const std::string& where) {
  json config;
  if (const auto fault = ParseStrictJson(text, &config)) BadConfig(where, fault->what);
  if (!config.is_object()) BadConfig(where, "is not a JSON object");
  return config;
}

template <typename... Names>
auto OneOf(Names... names) {
  return [=](const std::string& key) { return ((key == names) || ...); };
}

bool IsLinear(const std::string& key) {
  for (Linear linear : kLinears) {
    if (key == LinearName(linear)) return true;
  }
  return false;
}

bool IsSite(const std::string& key) {
  for (Site site : kSites) {
    if (key == SiteName(site)) return true;
  }
  return false;
}

class Parser {
 public:
  Parser(const ModelConfig& model, int64_t version, const std::string& where)
      : model_(model), version_(version), where_(where) {}

  // Reads "weights", "weight_groups", "sites" and "cache" into *grid.
  enum class Extent { kWhole, kOverride };  // kOverride: what is absent stays as it is
  void ReadBlock(const JsonFields& fields, Extent extent, BlockGrid* grid) const {
    const auto wanted = [extent](const JsonFields& in, std::string_view key) {
      return extent == Extent::kWhole || in.Has(key);
    };
    if (wanted(fields, "weights")) {
      const JsonFields weights = fields.Object("weights");
      for (Linear linear : kLinears) {
        if (!wanted(weights, LinearName(linear))) continue;
        grid->weight_bits[static_cast<size_t>(linear)] = Bits(weights, LinearName(linear));
      }
      weights.RefuseOthers(IsLinear);
    }
    if (KnowsGroups() && fields.Has("weight_groups")) ReadGroups(fields, grid);
    if (wanted(fields, "sites")) {
      const JsonFields sites = fields.Object("sites");
      for (Site site : kSites) {
        if (!wanted(sites, SiteName(site))) continue;
        grid->sites[static_cast<size_t>(site)] = ReadSite(sites.Object(SiteName(site)), site);
      }
      sites.RefuseOthers(IsSite);
    }
    if (wanted(fields, "cache")) grid->cache = ReadCache(fields.Object("cache"));
    for (Linear linear : kLinears) {
      const size_t i = static_cast<size_t>(linear);
      const int64_t cols = ColumnsOf(*grid, model_, linear);
      if (GroupsFit(grid->weight_groups[i], grid->weight_bits[i], cols)) continue;
      BadConfig(where_, fields.path() + ".weight_groups." + std::string(LinearName(linear)) +
                            " is " + std::to_string(grid->weight_groups[i]) + ", with weights of " +
                            std::to_string(grid->weight_bits[i]) + " bits and " +
                            std::to_string(cols) +
                            " columns: a group is smaller than a row, of integers");
    }
  }

  // Whether this version of the format has groups of weights.
  bool KnowsGroups() const { return version_ >= 4; }

  HeadGrid ReadHead(const JsonFields& fields) const {
    const HeadGrid grid = {Bits(fields, "bits"), Bits(fields, "act_bits")};
    fields.RefuseOthers(OneOf("bits", "act_bits"));
    return grid;
  }

  // The layer that a key of "layers" names, written as std::to_string writes it.
  size_t LayerIndex(const JsonFields& layers, const std::string& key) const {
    bool good = !key.empty() && key.size() <= 9 && (key[0] != '0' || key.size() == 1);
    int64_t index = 0;
    for (char digit : key) {
      good = good && digit >= '0' && digit <= '9';
      if (good) index = index * 10 + (digit - '0');
    }
    if (!good || index >= model_.layers) {
      BadConfig(where_, layers.path() + " has the key " + Quoted(key) +
                            ", which is not one of the " + std::to_string(model_.layers) +
                            " layers");
    }
    return static_cast<size_t>(index);
  }

 private:
  int Bits(const JsonFields& fields, std::string_view key) const {
    const int64_t bits = fields.Integer(key, 16);
    if (!IsBitWidth(bits)) {
      BadConfig(where_, fields.path() + "." + std::string(key) + " is " + std::to_string(bits) +
                            ", not 2 to 8 or 16");
    }
    return static_cast<int>(bits);
  }

  void ReadGroups(const JsonFields& fields, BlockGrid* grid) const {
    const JsonFields groups = fields.Object("weight_groups");
    for (Linear linear : kLinears) {
      if (!groups.Has(LinearName(linear))) continue;
      grid->weight_groups[static_cast<size_t>(linear)] =
          groups.Integer(LinearName(linear), std::numeric_limits<int64_t>::max());
    }
    groups.RefuseOthers(IsLinear);
  }

  SiteGrid ReadSite(const JsonFields& fields, Site site) const {
    const int64_t width = SiteWidth(model_, site);
    SiteGrid grid;
    grid.act_bits = Bits(fields, "act_bits");
    grid.left = fields.Integer("left", width);
    grid.right = fields.Integer("right", width);
    grid.clips = fields.Integer("clips", static_cast<int64_t>(kLinears.size()));
    const bool knows_columns = version_ >= 3;
    if (knows_columns && fields.Has("extra_columns")) {
      grid.extra_columns = fields.Integer("extra_columns", kMostFlattenedColumns);
    }
    const auto known = OneOf("act_bits", "left", "right", "clips");
    fields.RefuseOthers([&](const std::string& key) {
      return known(key) || (knows_columns && key == "extra_columns");
    });
    if (!FlatteningFits(grid, width)) {
      BadConfig(where_, fields.path() +
                            ": a site with extra_columns has act_bits 2 to 8, no "
                            "matrices, and at most " +
                            std::to_string(kMostFlattenedColumns) + " columns in all");
    }
    if (!FactorsFit(grid, width)) {
      BadConfig(where_, fields.path() + ": matrices of orders " + std::to_string(grid.left) +
                            " and " + std::to_string(grid.right) + " do not make a width of " +
                            std::to_string(width));
    }
    if (!ClipsFit(grid, site)) {
      BadConfig(where_, fields.path() + ".clips is " + std::to_string(grid.clips) +
                            " with act_bits " + std::to_string(grid.act_bits) +
                            "; 16 bits and extra_columns ask for 0, others for 1 or one per "
                            "linear of the site");
    }
    return grid;
  }

  CacheGrid ReadCache(const JsonFields& fields) const {
    CacheGrid grid;
    grid.k_bits = Bits(fields, "k_bits");
    grid.v_bits = Bits(fields, "v_bits");
    grid.transform = fields.Boolean("transform");
    fields.RefuseOthers(OneOf("k_bits", "v_bits", "transform"));
    return grid;
  }

  const ModelConfig& model_;
  const int64_t version_;
  const std::string& where_;
};

}  // namespace

bool FactorsFit(const SiteGrid& grid, int64_t width) {
  if (grid.left < 0 || grid.right < 0) return false;
  const uint64_t left = static_cast<uint64_t>(grid.left);
  const uint64_t right = static_cast<uint64_t>(grid.right);
  if (left > 0 && right > 0) return CheckedMul(left, right) == static_cast<uint64_t>(width);
  const uint64_t only = left + right;
  return only == 0 || static_cast<uint64_t>(width) % only == 0;
}

bool ClipsFit(const SiteGrid& grid, Site site) {
  if (grid.act_bits == 16 || grid.extra_columns) return grid.clips == 0;
  return grid.clips == 1 || grid.clips == static_cast<int64_t>(LinearsOf(site).size());
}

bool FlatteningFits(const SiteGrid& grid, int64_t width) {
  if (!grid.extra_columns) return true;
  return grid.act_bits <= 8 && grid.left == 0 && grid.right == 0 &&
         width <= kMostFlattenedColumns && *grid.extra_columns >= 0 &&
         *grid.extra_columns <= kMostFlattenedColumns - width;
}

bool SaysFlatQuant(std::string_view config_json) {
  json config;
  if (ParseStrictJson(config_json, &config) || !config.is_object()) return false;
  const auto found = config.find(kKey);
  if (found == config.end() || !found->is_object()) return false;
  const auto method = found->find("quant_method");
  return method != found->end() && *method == kMethod;
}

void CheckFormatVersion(std::string_view config_json, const std::string& where) {
  const json config = ParseObject(config_json, where);
  const auto found = config.find(kKey);
  if (found == config.end()) {
    throw Error("packed.bad_config", where, "has no quantization_config: not a packed model",
                "make one with `flatquant quantize`");
  }
  const JsonFields fields(*found, std::string(kKey), where);
  const std::string method = fields.Text("quant_method");
  if (method != kMethod) {
    throw Error("packed.bad_config", where,
                "was quantized by " + Quoted(method) + ", not by flatquant",
                "quantize the full-precision model with `flatquant quantize`");
  }
  const json& version = fields.Get("format_version");
  if (!version.is_number_unsigned() || version == 0u) {
    BadConfig(where, fields.path() + ".format_version is not a positive integer");
  }
  if (version.get<uint64_t>() > kPackedFormatVersion) {
    throw Error("packed.newer_version", where,
                "has format version " + version.dump() + ", this program reads up to " +
                    std::to_string(kPackedFormatVersion),
                "update flatquant");
  }
}

QuantizationConfig ParseQuantizationConfig(std::string_view config_json, const ModelConfig& model,
                                           const std::string& where) {
  const json root = ParseObject(config_json, where);
  const JsonFields fields(JsonFields(root, "config", where).Get(kKey), std::string(kKey), where);
  const int64_t version = fields.Integer("format_version", kPackedFormatVersion);
  const Parser parser(model, version, where);
  QuantizationConfig config;
  try {
    config.scheme = Scheme::Parse(fields.Text("scheme"));
  } catch (const Error& error) {
    if (error.name() != "scheme.bad") throw;
    BadConfig(where, fields.path() + ".scheme: " + error.what());
  }
  BlockGrid base;
  parser.ReadBlock(fields, Parser::Extent::kWhole, &base);
  config.blocks.assign(static_cast<size_t>(model.layers), base);
  if (fields.Has("layers")) {
    const JsonFields layers = fields.Object("layers");
    for (const auto& [key, value] : layers.object().items()) {
      const JsonFields layer(value, layers.path() + "." + key, where);
      parser.ReadBlock(layer, Parser::Extent::kOverride,
                       &config.blocks[parser.LayerIndex(layers, key)]);
      const auto known = OneOf("weights", "sites", "cache");
      layer.RefuseOthers([&](const std::string& name) {
        return known(name) || (parser.KnowsGroups() && name == "weight_groups");
      });
    }
  }
  const bool has_head = version >= 2;
  if (has_head) config.head = parser.ReadHead(fields.Object("lm_head"));
  const JsonFields provenance = fields.Object("provenance");
  for (const auto& [key, value] : provenance.object().items()) {
    config.provenance[key] = provenance.Text(key);
  }
  const auto known = OneOf("quant_method", "format_version", "scheme", "weights", "sites", "cache",
                           "layers", "provenance");
  fields.RefuseOthers([&](const std::string& key) {
    return known(key) || (has_head && key == "lm_head") ||
           (parser.KnowsGroups() && key == "weight_groups");
  });
  return config;
}

}  // namespace flatquant
