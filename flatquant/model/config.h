#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

enum class Architecture { kLlama, kMistral, kQwen2, kQwen3 };

// Rotary position embedding: frequency of pair i is theta^(-2i/head_dim),
// rescaled as `type` says (Hugging Face's "rope_type").
struct RopeConfig {
  enum class Type { kDefault, kLinear, kLlama3 };
  Type type = Type::kDefault;
  double theta = 10000.0;
  double factor = 1.0;
  double low_freq_factor = 1.0;           // kLlama3
  double high_freq_factor = 4.0;          // kLlama3
  int64_t original_max_positions = 8192;  // kLlama3
};

// What a network is, as data. Sizes count elements.
struct ModelConfig {
  Architecture architecture = Architecture::kLlama;
  int64_t hidden = 0;
  int64_t ffn = 0;  // intermediate_size
  int64_t layers = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab = 0;
  int64_t max_positions = 0;
  float rms_eps = 1e-5f;
  RopeConfig rope;
  bool tied_embeddings = false;
  bool qkv_bias = false;
  bool o_bias = false;
  bool mlp_bias = false;
  bool qk_norm = false;                   // per-head RMSNorm on q and k before RoPE (Qwen3)
  std::optional<int64_t> sliding_window;  // attention sees only this many last positions
  std::optional<int32_t> bos;
  std::vector<int32_t> eos;
  // quantization_config's quant_method ("unknown" if it has none); empty for a
  // full-precision model.
  std::string quant_method;

  int64_t q_width() const { return heads * head_dim; }
  int64_t kv_width() const { return kv_heads * head_dim; }

  // From config.json's text; `where` names the file in errors. Both ways of
  // writing RoPE are read (rope_theta/rope_scaling and rope_parameters).
  // Errors: config.bad_json, config.missing_field, config.bad_value,
  // config.unsupported (architecture, activation or RoPE type).
  static ModelConfig Parse(std::string_view json, const std::string& where);

  // directory/config.json, with generation_config.json's eos ids added.
  static ModelConfig Open(const std::filesystem::path& directory);
};

std::string_view ArchitectureName(Architecture architecture);

// Frequencies of RoPE, [head_dim / 2], radians per position.
std::vector<double> RopeFrequencies(const RopeConfig& rope, int64_t head_dim);

}  // namespace flatquant
