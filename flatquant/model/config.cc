#include "flatquant/model/config.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/strict_json.h"

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

// A JSON object with accessors that name the file and the field in errors.
// null counts as absent unless an accessor says otherwise.
class Fields {
 public:
  Fields(const json& object, std::string prefix, const std::string& where)
      : object_(&object), prefix_(std::move(prefix)), where_(&where) {}

  const json* Find(const char* name) const {
    const auto found = object_->find(name);
    return found == object_->end() || found->is_null() ? nullptr : &*found;
  }
  bool Mentions(const char* name) const { return object_->contains(name); }

  int64_t Size(const char* name, int64_t limit) const {
    return Integer(Require(name), name, 1, limit);
  }
  int64_t Size(const char* name, int64_t limit, int64_t fallback) const {
    const json* value = Find(name);
    return value == nullptr ? fallback : Integer(*value, name, 1, limit);
  }
  int64_t Integer(const json& value, const char* name, int64_t low, int64_t high) const {
    const bool is_integer = value.is_number_integer();
    const bool fits = is_integer && (!value.is_number_unsigned() ||
                                     value.get<uint64_t>() <= static_cast<uint64_t>(kMaxInt64));
    const int64_t number = fits ? value.get<int64_t>() : 0;
    if (!fits || number < low || number > high) {
      BadValue(name, value,
               "an integer from " + std::to_string(low) + " to " + std::to_string(high));
    }
    return number;
  }

  double Positive(const char* name) const { return Positive(Require(name), name); }
  double Positive(const char* name, double fallback) const {
    const json* value = Find(name);
    return value == nullptr ? fallback : Positive(*value, name);
  }

  bool Bool(const char* name, bool fallback) const {
    const json* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_boolean()) BadValue(name, *value, "true or false");
    return value->get<bool>();
  }

  std::string String(const char* name, const std::string& fallback) const {
    const json* value = Find(name);
    if (value == nullptr) return fallback;
    if (!value->is_string()) BadValue(name, *value, "a string");
    return value->get<std::string>();
  }

  // The object in a field, or nothing.
  std::optional<Fields> Object(const char* name) const {
    const json* value = Find(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_object()) BadValue(name, *value, "an object");
    return Fields(*value, prefix_ + name + ".", *where_);
  }

  const json& Require(const char* name) const {
    const json* value = Find(name);
    if (value == nullptr) {
      throw Error("config.missing_field", *where_, "lacks '" + prefix_ + name + "'",
                  "use the config.json that belongs to the weights");
    }
    return *value;
  }

  [[noreturn]] void BadValue(const char* name, const json& value,
                             const std::string& expected) const {
    throw Error("config.bad_value", *where_,
                "'" + prefix_ + name + "' is " + Show(value) + ", not " + expected,
                "use the config.json that belongs to the weights");
  }

  [[noreturn]] void Unsupported(const char* name, const std::string& found,
                                std::string_view supported) const {
    throw Error("config.unsupported", *where_, "'" + prefix_ + name + "' is " + found,
                "supported: " + std::string(supported));
  }

 private:
  static constexpr int64_t kMaxInt64 = std::numeric_limits<int64_t>::max();

  static std::string Show(const json& value) {
    if (value.is_object()) return "an object";
    if (value.is_array()) return "an array";
    return value.is_string() ? Quoted(value.get_ref<const std::string&>()) : value.dump();
  }

  double Positive(const json& value, const char* name) const {
    const double number = value.is_number() ? value.get<double>() : 0.0;
    if (!(number > 0.0) || !std::isfinite(number)) BadValue(name, value, "a positive number");
    return number;
  }

  const json* object_;
  std::string prefix_;  // "rope_scaling." inside it
  const std::string* where_;
};

json ParseObject(std::string_view text, const std::string& where) {
  json root;
  auto fault = ParseStrictJson(text, &root);
  if (!fault && !root.is_object()) fault = JsonFault{JsonFault::Kind::kSyntax, "not a JSON object"};
  if (fault) throw Error("config.bad_json", where, fault->what, "download the file again");
  return root;
}

const Family& FamilyOf(const Fields& fields) {
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
RopeConfig ParseRope(const Fields& fields) {
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
  const Fields* const inner = scaling ? &*scaling : nullptr;
  for (const Fields* place : {&fields, inner}) {
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

// Mistral slides in every layer. Qwen does where layer_types says so, or, without
// it, from layer max_window_layers on if use_sliding_window is true. One window
// for all layers is all that the project runs.
std::optional<int64_t> ParseSlidingWindow(const Fields& fields, const Family& family,
                                          const ModelConfig& config) {
  if (family.default_sliding_window == 0) return std::nullopt;
  if (fields.Mentions("sliding_window") && fields.Find("sliding_window") == nullptr) {
    return std::nullopt;
  }
  const bool is_qwen = family.architecture != Architecture::kMistral;
  if (is_qwen && !fields.Bool("use_sliding_window", false)) return std::nullopt;
  const int64_t window = fields.Size("sliding_window", kMaxCount, family.default_sliding_window);
  if (!is_qwen) return window;

  int64_t sliding =
      config.layers - (fields.Find("max_window_layers") == nullptr
                           ? std::min<int64_t>(28, config.layers)
                           : std::min(fields.Integer(*fields.Find("max_window_layers"),
                                                     "max_window_layers", 0, kMaxCount),
                                      config.layers));
  if (const json* types = fields.Find("layer_types")) {
    if (!types->is_array() || types->size() != static_cast<size_t>(config.layers)) {
      fields.BadValue("layer_types", *types, "an array of one string per layer");
    }
    sliding = 0;
    for (const json& type : *types) {
      if (type == "sliding_attention") {
        ++sliding;
      } else if (type != "full_attention") {
        fields.BadValue("layer_types", type, "full_attention or sliding_attention");
      }
    }
  }
  if (sliding == 0 || window >= config.max_positions) return std::nullopt;
  if (sliding < config.layers) {
    fields.Unsupported("sliding_window", "for some of the layers only",
                       "one attention window for all layers");
  }
  return window;
}

int32_t TokenId(const Fields& fields, const json& value, const char* name) {
  return static_cast<int32_t>(fields.Integer(value, name, 0, kMaxCount));
}

// An id, a list of ids, or null; appended to *ids once each.
void AddEos(const Fields& fields, std::vector<int32_t>* ids) {
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

void ParseTokens(const Fields& fields, const Family& family, ModelConfig* config) {
  if (const json* bos = fields.Find("bos_token_id")) {
    config->bos = TokenId(fields, *bos, "bos_token_id");
  } else if (family.has_bos_and_eos && !fields.Mentions("bos_token_id")) {
    config->bos = 1;
  }
  AddEos(fields, &config->eos);
  if (family.has_bos_and_eos && !fields.Mentions("eos_token_id")) config->eos = {2};
}

void ParseHeads(const Fields& fields, const Family& family, ModelConfig* config) {
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
  const json root = ParseObject(text, where);
  const Fields fields(root, "", where);
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
    const json root = ParseObject(ReadFile(generation, kMaxConfigBytes), where);
    AddEos(Fields(root, "", where), &config.eos);
  }
  return config;
}

std::string_view ArchitectureName(Architecture architecture) {
  return kFamilies[static_cast<size_t>(architecture)].model_type;
}

std::vector<double> RopeFrequencies(const RopeConfig& rope, int64_t head_dim) {
  std::vector<double> frequencies(static_cast<size_t>(head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = 2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    const double frequency = std::pow(rope.theta, -exponent);
    switch (rope.type) {
      case RopeConfig::Type::kDefault:
        frequencies[i] = frequency;
        break;
      case RopeConfig::Type::kLinear:
        frequencies[i] = frequency / rope.factor;
        break;
      case RopeConfig::Type::kLlama3: {
        // Llama 3.1's rule, as in Hugging Face transformers' modeling_rope_utils
        // (_compute_llama3_parameters): pairs that turn more than
        // high_freq_factor times in the original context keep their frequency,
        // those that turn less than low_freq_factor times are slowed by factor,
        // and between the two the frequency is interpolated linearly in turns.
        const double turns =
            static_cast<double>(rope.original_max_positions) * frequency / (2.0 * std::numbers::pi);
        const double weight = std::clamp(
            (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor), 0.0,
            1.0);
        frequencies[i] = (1.0 - weight) * frequency / rope.factor + weight * frequency;
        break;
      }
    }
  }
  return frequencies;
}

}  // namespace flatquant
