#include "flatquant/model/config.h"

#include <algorithm>
#include <array>
#include <limits>
#include <nlohmann/json.hpp>

#include "flatquant/base/file.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/model/config_fields.h"

namespace flatquant {
namespace {

using nlohmann::json;

constexpr size_t kMaxConfigBytes = 16 << 20;

// Bounds far beyond any published model; with them no product of two sizes
// leaves 64 bits, and no count of positions or tokens leaves 32.
constexpr int64_t kMaxWidth = 1 << 24;
constexpr int64_t kMaxLayers = 1 << 16;
constexpr int64_t kMaxHeads = 1 << 16;
constexpr int64_t kMaxHeadDim = 1 << 16;
constexpr float kMinEps = 1e-30f;  // still a normal float
constexpr int64_t kMaxCount = std::numeric_limits<int32_t>::max();

// What Hugging Face's configuration classes assume about a field that
// config.json leaves out, and which fields they know.
struct Family {
  Architecture architecture;
  std::string_view model_type;
  int64_t default_kv_heads;        // 0: as many as heads
  int64_t default_head_dim;        // 0: hidden / heads
  int64_t default_sliding_window;  // 0: none
  bool has_bos_and_eos;            // 1 and 2 when left out
};

constexpr std::array<Family, 4> kFamilies = {{
    {Architecture::kLlama, "llama", 0, 0, 0, true},
    {Architecture::kMistral, "mistral", 8, 0, 4096, true},
    {Architecture::kQwen2, "qwen2", 32, 0, 4096, false},
    {Architecture::kQwen3, "qwen3", 32, 128, 4096, false},
}};

const Family& FamilyOf(const ConfigFields& fields) {
  fields.Require("model_type");
  const std::string type = fields.String("model_type", "");
  for (const Family& family : kFamilies) {
    if (family.model_type == type) return family;
  }
  fields.Unsupported("model_type", Quoted(type), "llama, mistral, qwen2, qwen3");
}

// rope_parameters (transformers 5) holds theta and scaling together; before it,
// rope_theta stood alone and rope_scaling, whose type was once called "type",
// beside it.
RopeConfig ParseRope(const ConfigFields& fields) {
  RopeConfig rope;
  rope.theta = fields.Positive("rope_theta", rope.theta);
  auto scaling = fields.Object("rope_parameters");
  if (scaling) {
    rope.theta = scaling->Positive("rope_theta", rope.theta);
  } else {
    scaling = fields.Object("rope_scaling");
  }
  // Only rope_parameters may give a share of the head that is not all of it, but
  // some configurations say so at the top.
  const ConfigFields* const inner = scaling ? &*scaling : nullptr;
  for (const ConfigFields* place : {&fields, inner}) {
    if (place != nullptr && place->Positive("partial_rotary_factor", 1.0) != 1.0) {
      place->Unsupported("partial_rotary_factor", "not 1", "RoPE over the whole head");
    }
  }
  if (!scaling) return rope;

  const char* key = scaling->Find("rope_type") == nullptr ? "type" : "rope_type";
  const std::string type = scaling->String(key, "default");
  if (type == "default") return rope;
  if (type == "linear") {
    rope.type = RopeConfig::Type::kLinear;
  } else if (type == "llama3") {
    rope.type = RopeConfig::Type::kLlama3;
  } else {
    scaling->Unsupported(key, Quoted(type), "default, linear, llama3");
  }
  rope.factor = scaling->Positive("factor");
  if (rope.factor < 1.0) {
    scaling->BadValue("factor", *scaling->Find("factor"), "a number of at least 1");
  }
  if (rope.type == RopeConfig::Type::kLlama3) {
    rope.low_freq_factor = scaling->Positive("low_freq_factor");
    rope.high_freq_factor = scaling->Positive("high_freq_factor");
    if (rope.high_freq_factor <= rope.low_freq_factor) {
      scaling->BadValue("high_freq_factor", *scaling->Find("high_freq_factor"),
                        "more than low_freq_factor");
    }
    rope.original_max_positions = scaling->Size("original_max_position_embeddings", kMaxCount);
  }
  return rope;
}

// The number of a Qwen's layers whose attention slides: those that layer_types
// says, or, without it, those from max_window_layers on.
int64_t SlidingLayers(const ConfigFields& fields, int64_t layers) {
  const json* types = fields.Find("layer_types");
  if (types == nullptr) {
    constexpr int64_t kDefaultFirst = 28;
    const json* first = fields.Find("max_window_layers");
    const int64_t full = first == nullptr
                             ? kDefaultFirst
                             : fields.Integer(*first, "max_window_layers", 0, kMaxCount);
    return layers - std::min(full, layers);
  }
  if (!types->is_array() || types->size() != static_cast<size_t>(layers)) {
    fields.BadValue("layer_types", *types, "an array of one string per layer");
  }
  int64_t sliding = 0;
  for (const json& type : *types) {
    if (type == "sliding_attention") {
      ++sliding;
    } else if (type != "full_attention") {
      fields.BadValue("layer_types", type, "full_attention or sliding_attention");
    }
  }
  return sliding;
}

// Mistral slides in every layer; Qwen only if use_sliding_window is true. One
// window for all layers is all that the project runs.
std::optional<int64_t> ParseSlidingWindow(const ConfigFields& fields, const Family& family,
                                          const ModelConfig& config) {
  const bool written_null =
      fields.Mentions("sliding_window") && fields.Find("sliding_window") == nullptr;
  if (family.default_sliding_window == 0 || written_null) return std::nullopt;
  const bool everywhere = family.architecture == Architecture::kMistral;
  if (!everywhere && !fields.Bool("use_sliding_window", false)) return std::nullopt;
  const int64_t window = fields.Size("sliding_window", kMaxCount, family.default_sliding_window);
  if (everywhere) return window;

  const int64_t sliding = SlidingLayers(fields, config.layers);
  if (sliding == 0 || window >= config.max_positions) return std::nullopt;
  if (sliding < config.layers) {
    fields.Unsupported("sliding_window", "for some of the layers only",
                       "one attention window for all layers");
  }
  return window;
}

int32_t TokenId(const ConfigFields& fields, const json& value, const char* name) {
  return static_cast<int32_t>(fields.Integer(value, name, 0, kMaxCount));
}

// An id, a list of ids, or null; appended to *ids once each.
void AddEos(const ConfigFields& fields, std::vector<int32_t>* ids) {
  const auto add = [&](const json& value) {
    const int32_t id = TokenId(fields, value, "eos_token_id");
    if (std::find(ids->begin(), ids->end(), id) == ids->end()) ids->push_back(id);
  };
  const json* value = fields.Find("eos_token_id");
  if (value == nullptr) return;
  if (value->is_array()) {
    for (const json& id : *value) add(id);
  } else {
    add(*value);
  }
}

void ParseTokens(const ConfigFields& fields, const Family& family, ModelConfig* config) {
  if (const json* bos = fields.Find("bos_token_id")) {
    config->bos = TokenId(fields, *bos, "bos_token_id");
  } else if (family.has_bos_and_eos && !fields.Mentions("bos_token_id")) {
    config->bos = 1;
  }
  AddEos(fields, &config->eos);
  if (family.has_bos_and_eos && !fields.Mentions("eos_token_id")) config->eos = {2};
}

void ParseHeads(const ConfigFields& fields, const Family& family, ModelConfig* config) {
  config->heads = fields.Size("num_attention_heads", kMaxHeads);
  const bool same = family.default_kv_heads == 0 || fields.Mentions("num_key_value_heads");  // null
  const int64_t kv_heads = same ? config->heads : family.default_kv_heads;
  config->kv_heads = fields.Size("num_key_value_heads", kMaxHeads, kv_heads);
  if (config->heads % config->kv_heads != 0) {
    fields.BadValue("num_key_value_heads", config->kv_heads,
                    "a divisor of the " + std::to_string(config->heads) + " attention heads");
  }
  if (const json* head_dim = fields.Find("head_dim")) {
    config->head_dim = fields.Integer(*head_dim, "head_dim", 1, kMaxHeadDim);
  } else if (family.default_head_dim != 0) {
    config->head_dim = family.default_head_dim;
  } else {
    if (config->hidden % config->heads != 0) {
      fields.BadValue("hidden_size", config->hidden,
                      "a multiple of the " + std::to_string(config->heads) +
                          " attention heads, and there is no head_dim");
    }
    config->head_dim = config->hidden / config->heads;
  }
  // RoPE rotates pairs of a head's elements.
  if (config->head_dim % 2 != 0) fields.BadValue("head_dim", config->head_dim, "even");
  if (config->q_width() > kMaxWidth) {
    fields.BadValue("num_attention_heads", config->heads,
                    "small enough for a width of " + std::to_string(kMaxWidth));
  }
}

}  // namespace

ModelConfig ModelConfig::Parse(std::string_view text, const std::string& where) {
  const json root = ParseConfigObject(text, where);
  const ConfigFields fields(root, "", where);
  const Family& family = FamilyOf(fields);
  ModelConfig config;
  config.architecture = family.architecture;
  config.hidden = fields.Size("hidden_size", kMaxWidth);
  config.ffn = fields.Size("intermediate_size", kMaxWidth);
  config.layers = fields.Size("num_hidden_layers", kMaxLayers);
  config.vocab = fields.Size("vocab_size", kMaxCount);
  config.max_positions = fields.Size("max_position_embeddings", kMaxCount);
  ParseHeads(fields, family, &config);
  config.rms_eps = static_cast<float>(fields.Positive("rms_norm_eps", 1e-6));
  if (config.rms_eps < kMinEps || config.rms_eps > 1.0f) {
    fields.BadValue("rms_norm_eps", fields.Require("rms_norm_eps"), "from 1e-30 to 1");
  }
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu" && activation != "swish") {
    fields.Unsupported("hidden_act", Quoted(activation), "silu");
  }
  config.rope = ParseRope(fields);
  config.tied_embeddings = fields.Bool("tie_word_embeddings", false);

  // Qwen2 has biases on q, k and v whatever its configuration says, Mistral has
  // none; elsewhere attention_bias is about q, k, v and o alike.
  const bool attention_bias = fields.Bool("attention_bias", false);
  switch (family.architecture) {
    case Architecture::kLlama:
      config.mlp_bias = fields.Bool("mlp_bias", false);
      [[fallthrough]];
    case Architecture::kQwen3:
      config.qkv_bias = attention_bias;
      config.o_bias = attention_bias;
      break;
    case Architecture::kQwen2:
      config.qkv_bias = true;
      break;
    case Architecture::kMistral:
      break;
  }
  config.qk_norm = family.architecture == Architecture::kQwen3;
  config.sliding_window = ParseSlidingWindow(fields, family, config);
  ParseTokens(fields, family, &config);
  if (const auto quantization = fields.Object("quantization_config")) {
    config.quant_method = quantization->String("quant_method", "unknown");
  }
  return config;
}

ModelConfig ModelConfig::Open(const std::filesystem::path& directory) {
  const std::filesystem::path path = directory / "config.json";
  ModelConfig config = Parse(ReadFile(path, kMaxConfigBytes), path.string());

  const std::filesystem::path generation = directory / "generation_config.json";
  if (std::filesystem::exists(generation)) {
    const std::string where = generation.string();
    const json root = ParseConfigObject(ReadFile(generation, kMaxConfigBytes), where);
    AddEos(ConfigFields(root, "", where), &config.eos);
  }
  return config;
}

std::string_view ArchitectureName(Architecture architecture) {
  return kFamilies[static_cast<size_t>(architecture)].model_type;
}

}  // namespace flatquant
