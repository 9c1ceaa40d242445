#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/model/network.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/scheme.h"

namespace flatquant {

// The `quantization_config` object of a packed model's config.json: which
// tensors the files hold and how to read them (FORMAT.md, "quantization_config").

// The newest version that the reader knows. The writer takes the oldest one that can
// say what the model has.
inline constexpr int64_t kPackedFormatVersion = 4;

struct SiteGrid {
  int act_bits = 16;
  int64_t left = 0;   // L, the order of the left matrix; 0: identity
  int64_t right = 0;  // R
  int64_t clips = 0;  // 0 with act_bits 16 or flattened; else 1, or one per linear of the site
  // Flattened: how many columns its linears have beyond the site's width.
  std::optional<int64_t> extra_columns;

  friend bool operator==(const SiteGrid&, const SiteGrid&) = default;
};

struct CacheGrid {
  int k_bits = 16;
  int v_bits = 16;
  bool transform = false;  // k_transform and q_transform exist

  friend bool operator==(const CacheGrid&, const CacheGrid&) = default;
};

// All of a block that is not data.
struct BlockGrid {
  std::array<int, 7> weight_bits{};        // indexed by Linear
  std::array<int64_t, 7> weight_groups{};  // PackedLinear::group_size; indexed by Linear
  std::array<SiteGrid, 4> sites;           // indexed by Site
  CacheGrid cache;

  friend bool operator==(const BlockGrid&, const BlockGrid&) = default;
};

// The output projection; version 1 of the format had it in 16 bits always.
struct HeadGrid {
  int bits = 16;
  int act_bits = 16;

  friend bool operator==(const HeadGrid&, const HeadGrid&) = default;
};

struct QuantizationConfig {
  Scheme scheme;
  HeadGrid head;
  std::vector<BlockGrid> blocks;
  std::map<std::string, std::string> provenance;
};

// What a block's tensors say about its grids.
BlockGrid GridOf(const PackedBlock& block);

// Whether a number of bits is one that the format has: 2..8 or 16.
constexpr bool IsBitWidth(int64_t bits) { return (bits >= 2 && bits <= 8) || bits == 16; }

// Whether the orders of a site's matrices make up its width: left * right, or
// one that divides it where the other is the identity.
bool FactorsFit(const SiteGrid& grid, int64_t width);

// Whether the number of clips is one that the site may have.
bool ClipsFit(const SiteGrid& grid, Site site);

// Whether a site of this width may be flattened so, or is not: no matrices beside it,
// integers, and not too many columns.
bool FlatteningFits(const SiteGrid& grid, int64_t width);

// Whether a linear of so many columns may have this group_size: 0, or below cols where it
// is quantized.
constexpr bool GroupsFit(int64_t group_size, int bits, int64_t cols) {
  return group_size == 0 || (bits <= 8 && group_size > 0 && group_size < cols);
}

// The columns of a linear's weight, those of a flattened site included.
int64_t ColumnsOf(const BlockGrid& grid, const ModelConfig& config, Linear which);

// Whether config.json's text has quantization_config.quant_method "flatquant".
// False for anything that cannot be parsed.
bool SaysFlatQuant(std::string_view config_json);

// Throws packed.bad_config if the text is not a packed model's config.json and
// packed.newer_version if its format_version is beyond ours. Comes before all
// else that interprets the file. `where` names the file in errors.
void CheckFormatVersion(std::string_view config_json, const std::string& where);

// Reads the object of a config.json that passed CheckFormatVersion. Strict:
// every field must be there, have its type and range, and be known.
// Errors: packed.bad_config.
QuantizationConfig ParseQuantizationConfig(std::string_view config_json, const ModelConfig& model,
                                           const std::string& where);

// The text of a packed config.json: the source's, in its order of keys, with
// quantization_config (put in the place of one that it may have) and with
// tie_word_embeddings spelled out. Errors: packed.bad_config.
std::string WithQuantizationConfig(std::string_view source_json, const QuantizationConfig& config,
                                   bool tied_embeddings, const std::string& where);

}  // namespace flatquant
