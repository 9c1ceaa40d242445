#include "flatquant/model/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <numbers>

#include "flatquant/model/crafted_model_for_test.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using nlohmann::json;
using ::testing::ElementsAre;
using testing::ErrorName;
using ::testing::HasSubstr;
using testing::SmallConfig;

ModelConfig Parse(const json& config) { return ModelConfig::Parse(config.dump(), "config.json"); }

std::string ParseError(const json& config) {
  return ErrorName([&] { Parse(config); });
}

// The error of the small configuration with one field changed.
std::string ErrorWith(const std::string& field, const json& value,
                      const std::string& model_type = "llama") {
  json config = SmallConfig(model_type);
  config[field] = value;
  return ParseError(config);
}

TEST(ConfigTest, DemoModel) {
  const ModelConfig config = ModelConfig::Open(testing::SourcePath("models/demo-7m"));
  EXPECT_EQ(config.architecture, Architecture::kLlama);
  EXPECT_EQ(config.hidden, 256);
  EXPECT_EQ(config.ffn, 704);
  EXPECT_EQ(config.layers, 8);
  EXPECT_EQ(config.heads, 4);
  EXPECT_EQ(config.kv_heads, 2);
  EXPECT_EQ(config.head_dim, 64);
  EXPECT_EQ(config.vocab, 4096);
  EXPECT_EQ(config.max_positions, 1024);
  EXPECT_FLOAT_EQ(config.rms_eps, 1e-5f);
  EXPECT_EQ(config.rope.type, RopeConfig::Type::kDefault);
  EXPECT_EQ(config.rope.theta, 10000.0);
  EXPECT_TRUE(config.tied_embeddings);
  EXPECT_FALSE(config.qkv_bias || config.o_bias || config.mlp_bias || config.qk_norm);
  EXPECT_FALSE(config.sliding_window);
  EXPECT_EQ(config.bos, 1);
  EXPECT_THAT(config.eos, ElementsAre(2));
  EXPECT_EQ(config.quant_method, "");
}

TEST(ConfigTest, Fixtures) {
  FLATQUANT_NEEDS_SHARED("fixtures");
  const auto open = [](const std::string& name) {
    return ModelConfig::Open(testing::SharedPath("fixtures/" + name));
  };
  const ModelConfig llama31 = open("llama31-gqa");
  EXPECT_EQ(llama31.rope.type, RopeConfig::Type::kLlama3);
  EXPECT_EQ(llama31.rope.theta, 500000.0);
  EXPECT_EQ(llama31.rope.factor, 8.0);
  EXPECT_EQ(llama31.rope.original_max_positions, 32);
  const ModelConfig qwen2 = open("qwen2");
  EXPECT_EQ(qwen2.architecture, Architecture::kQwen2);
  EXPECT_EQ(qwen2.head_dim, 16);  // not written: 112 / 7
  EXPECT_TRUE(qwen2.qkv_bias);
  EXPECT_FALSE(qwen2.o_bias);
  EXPECT_FALSE(qwen2.bos);
  EXPECT_TRUE(qwen2.eos.empty());
  const ModelConfig stories = open("tinystories-656k");
  EXPECT_EQ(stories.head_dim, 16);
  EXPECT_EQ(stories.rope.theta, 10000.0);
}

TEST(ConfigTest, BiasesFollowTheArchitecture) {
  struct Case {
    const char* model_type;
    bool attention_bias;
    bool qkv;
    bool o;
  };
  for (const Case& c : {Case{"llama", false, false, false}, Case{"llama", true, true, true},
                        Case{"mistral", true, false, false}, Case{"qwen2", false, true, false},
                        Case{"qwen3", false, false, false}, Case{"qwen3", true, true, true}}) {
    json text = SmallConfig(c.model_type);
    text["attention_bias"] = c.attention_bias;
    text["mlp_bias"] = true;
    const ModelConfig config = Parse(text);
    EXPECT_EQ(config.qkv_bias, c.qkv) << c.model_type << c.attention_bias;
    EXPECT_EQ(config.o_bias, c.o) << c.model_type << c.attention_bias;
    EXPECT_EQ(config.mlp_bias, c.model_type == std::string("llama"));
    EXPECT_EQ(config.qk_norm, c.model_type == std::string("qwen3"));
    EXPECT_EQ(ArchitectureName(config.architecture), c.model_type);
  }
}

TEST(ConfigTest, HeadDim) {
  json text = SmallConfig();
  text["head_dim"] = 16;  // heads * head_dim need not be hidden
  EXPECT_EQ(Parse(text).q_width(), 64);
  EXPECT_EQ(Parse(text).kv_width(), 32);
  text["head_dim"] = nullptr;
  EXPECT_EQ(Parse(text).head_dim, 8);
  text.erase("head_dim");
  EXPECT_EQ(Parse(text).head_dim, 8);
  text["model_type"] = "qwen3";
  EXPECT_EQ(Parse(text).head_dim, 128);
}

TEST(ConfigTest, KvHeadsLeftOut) {
  json text = SmallConfig();
  text.erase("num_key_value_heads");
  EXPECT_EQ(Parse(text).kv_heads, 4);
  text["model_type"] = "mistral";
  text["num_attention_heads"] = 16;
  EXPECT_EQ(Parse(text).kv_heads, 8);
  text["num_key_value_heads"] = nullptr;
  EXPECT_EQ(Parse(text).kv_heads, 16);
}

TEST(ConfigTest, BothWaysOfWritingRopeAgree) {
  json scaling = {{"rope_type", "llama3"},
                  {"factor", 8.0},
                  {"low_freq_factor", 1.0},
                  {"high_freq_factor", 4},
                  {"original_max_position_embeddings", 8192}};
  json before = SmallConfig();
  before["rope_theta"] = 500000;
  before["rope_scaling"] = scaling;
  json after = SmallConfig();
  scaling["rope_theta"] = 500000.0;
  after["rope_parameters"] = scaling;
  for (const json& text : {before, after}) {
    const RopeConfig rope = Parse(text).rope;
    EXPECT_EQ(rope.type, RopeConfig::Type::kLlama3);
    EXPECT_EQ(rope.theta, 500000.0);
    EXPECT_EQ(rope.factor, 8.0);
    EXPECT_EQ(rope.low_freq_factor, 1.0);
    EXPECT_EQ(rope.high_freq_factor, 4.0);
    EXPECT_EQ(rope.original_max_positions, 8192);
  }
}

TEST(ConfigTest, RopeTypes) {
  json text = SmallConfig();
  text["rope_scaling"] = {{"type", "linear"}, {"factor", 2.5}};  // the older key
  EXPECT_EQ(Parse(text).rope.type, RopeConfig::Type::kLinear);
  EXPECT_EQ(Parse(text).rope.factor, 2.5);
  text["rope_scaling"] = nullptr;
  EXPECT_EQ(Parse(text).rope.type, RopeConfig::Type::kDefault);
  text["rope_scaling"] = {{"rope_type", "default"}};
  EXPECT_EQ(Parse(text).rope.type, RopeConfig::Type::kDefault);
  for (const char* type : {"dynamic", "yarn", "longrope", "su"}) {
    EXPECT_EQ(ErrorWith("rope_scaling", {{"rope_type", type}, {"factor", 2.0}}),
              "config.unsupported")
        << type;
  }
  EXPECT_EQ(ErrorWith("rope_scaling", {{"rope_type", "linear"}}), "config.missing_field");
  EXPECT_EQ(ErrorWith("rope_scaling", {{"rope_type", "linear"}, {"factor", 0.5}}),
            "config.bad_value");
  EXPECT_EQ(ErrorWith("rope_scaling", {{"rope_type", "linear"}, {"factor", "2"}}),
            "config.bad_value");
  EXPECT_EQ(ErrorWith("rope_scaling", {{"rope_type", 1}}), "config.bad_value");
  EXPECT_EQ(ErrorWith("rope_scaling", "linear"), "config.bad_value");
  EXPECT_EQ(ErrorWith("rope_scaling", {{"rope_type", "llama3"},
                                       {"factor", 8.0},
                                       {"low_freq_factor", 4.0},
                                       {"high_freq_factor", 4.0},
                                       {"original_max_position_embeddings", 8192}}),
            "config.bad_value");
  EXPECT_EQ(ErrorWith("rope_parameters", {{"partial_rotary_factor", 0.5}}), "config.unsupported");
  EXPECT_EQ(ErrorWith("partial_rotary_factor", 0.5), "config.unsupported");
  EXPECT_EQ(ErrorWith("rope_theta", 0), "config.bad_value");
  EXPECT_EQ(ErrorWith("rope_theta", -1.0), "config.bad_value");
}

TEST(ConfigTest, SlidingWindow) {
  json mistral = SmallConfig("mistral");
  EXPECT_EQ(Parse(mistral).sliding_window, 4096);  // its configuration class's default
  mistral["sliding_window"] = nullptr;
  EXPECT_FALSE(Parse(mistral).sliding_window);
  mistral["sliding_window"] = 16;
  EXPECT_EQ(Parse(mistral).sliding_window, 16);

  json llama = SmallConfig();
  llama["sliding_window"] = 16;  // means nothing to a Llama
  EXPECT_FALSE(Parse(llama).sliding_window);

  json qwen = SmallConfig("qwen2");
  qwen["sliding_window"] = 16;
  EXPECT_FALSE(Parse(qwen).sliding_window);
  qwen["use_sliding_window"] = true;
  EXPECT_FALSE(Parse(qwen).sliding_window);  // from layer 28 on
  qwen["max_window_layers"] = 0;
  EXPECT_EQ(Parse(qwen).sliding_window, 16);
  qwen["max_window_layers"] = 1;
  EXPECT_EQ(ParseError(qwen), "config.unsupported");
  qwen["layer_types"] = {"sliding_attention", "sliding_attention"};
  EXPECT_EQ(Parse(qwen).sliding_window, 16);
  qwen["layer_types"] = {"full_attention", "full_attention"};
  EXPECT_FALSE(Parse(qwen).sliding_window);
  qwen["layer_types"] = {"full_attention", "sliding_attention"};
  EXPECT_EQ(ParseError(qwen), "config.unsupported");
  qwen["sliding_window"] = 64;  // all positions: no window at all
  EXPECT_FALSE(Parse(qwen).sliding_window);
  qwen["layer_types"] = {"full_attention"};
  EXPECT_EQ(ParseError(qwen), "config.bad_value");
  qwen["layer_types"] = {"linear_attention", "full_attention"};
  EXPECT_EQ(ParseError(qwen), "config.bad_value");
}

TEST(ConfigTest, TokenIds) {
  json text = SmallConfig();
  EXPECT_EQ(Parse(text).bos, 1);
  EXPECT_THAT(Parse(text).eos, ElementsAre(2));
  text["bos_token_id"] = nullptr;
  text["eos_token_id"] = {7, 9, 7};
  EXPECT_FALSE(Parse(text).bos);
  EXPECT_THAT(Parse(text).eos, ElementsAre(7, 9));
  text["eos_token_id"] = nullptr;
  EXPECT_THAT(Parse(text).eos, ElementsAre());
  EXPECT_EQ(ErrorWith("eos_token_id", -1), "config.bad_value");
  EXPECT_EQ(ErrorWith("eos_token_id", int64_t{1} << 31), "config.bad_value");
  EXPECT_EQ(ErrorWith("eos_token_id", {1, "2"}), "config.bad_value");
  EXPECT_EQ(ErrorWith("bos_token_id", 1.5), "config.bad_value");
  EXPECT_FALSE(Parse(SmallConfig("qwen2")).bos);
}

TEST(ConfigTest, GenerationConfigAddsEos) {
  const auto folder = testing::ScratchFolder();
  testing::WriteText(folder / "config.json", SmallConfig().dump());
  testing::WriteText(folder / "generation_config.json", R"({"eos_token_id": [2, 5]})");
  EXPECT_THAT(ModelConfig::Open(folder).eos, ElementsAre(2, 5));
  testing::WriteText(folder / "generation_config.json", R"({"eos_token_id": )");
  EXPECT_EQ(ErrorName([&] { ModelConfig::Open(folder); }), "config.bad_json");
  testing::WriteText(folder / "generation_config.json", R"({"eos_token_id": {}})");
  EXPECT_EQ(ErrorName([&] { ModelConfig::Open(folder); }), "config.bad_value");
}

TEST(ConfigTest, QuantMethod) {
  json text = SmallConfig();
  text["quantization_config"] = {{"quant_method", "flatquant"}, {"bits", 4}};
  EXPECT_EQ(Parse(text).quant_method, "flatquant");
  text["quantization_config"] = {{"bits", 4}};
  EXPECT_EQ(Parse(text).quant_method, "unknown");
  EXPECT_EQ(ErrorWith("quantization_config", 4), "config.bad_value");
}

TEST(ConfigTest, BadJson) {
  const auto name = [](std::string_view text) {
    return ErrorName([&] { ModelConfig::Parse(text, "config.json"); });
  };
  EXPECT_EQ(name(""), "config.bad_json");
  EXPECT_EQ(name("[]"), "config.bad_json");
  EXPECT_EQ(name("{\"model_type\": \"llama\""), "config.bad_json");
  EXPECT_EQ(name("{\"hidden_size\": 1, \"hidden_size\": 2}"), "config.bad_json");
  EXPECT_EQ(name("{\"model_type\": \"\xff\"}"), "config.bad_json");
  EXPECT_EQ(name("{\"a\":" + std::string(100000, '[')), "config.bad_json");
  EXPECT_EQ(name("{}"), "config.missing_field");
}

TEST(ConfigTest, EverySizeIsRequiredAndBounded) {
  for (const char* field : {"hidden_size", "intermediate_size", "num_hidden_layers",
                            "num_attention_heads", "vocab_size", "max_position_embeddings"}) {
    json text = SmallConfig();
    text.erase(field);
    EXPECT_EQ(ParseError(text), "config.missing_field") << field;
    for (const json& value : {json(0), json(-4), json(4.0), json("4"), json(true), json::array({4}),
                              json(int64_t{1} << 40), json(std::numeric_limits<uint64_t>::max())}) {
      EXPECT_EQ(ErrorWith(field, value), "config.bad_value") << field << " " << value;
    }
  }
}

TEST(ConfigTest, BadValues) {
  EXPECT_EQ(ErrorWith("num_key_value_heads", 3), "config.bad_value");
  EXPECT_EQ(ErrorWith("num_key_value_heads", 8), "config.bad_value");
  EXPECT_EQ(ErrorWith("num_key_value_heads", 0), "config.bad_value");
  EXPECT_EQ(ErrorWith("head_dim", 7), "config.bad_value");
  EXPECT_EQ(ErrorWith("head_dim", 1 << 20), "config.bad_value");
  EXPECT_EQ(ErrorWith("rms_norm_eps", 0.0), "config.bad_value");
  EXPECT_EQ(ErrorWith("rms_norm_eps", 1e-60), "config.bad_value");
  EXPECT_EQ(ErrorWith("rms_norm_eps", 2), "config.bad_value");
  EXPECT_EQ(ErrorWith("tie_word_embeddings", "true"), "config.bad_value");
  EXPECT_EQ(ErrorWith("attention_bias", 1), "config.bad_value");
  EXPECT_EQ(ErrorWith("model_type", 1), "config.bad_value");
  json text = SmallConfig();
  text.erase("head_dim");
  text["hidden_size"] = 30;
  EXPECT_EQ(ParseError(text), "config.bad_value");
  text = SmallConfig();
  text["num_attention_heads"] = 1 << 14;
  text["head_dim"] = 1 << 14;
  EXPECT_EQ(ParseError(text), "config.bad_value");
}

TEST(ConfigTest, Unsupported) {
  EXPECT_EQ(ErrorWith("model_type", "gpt2"), "config.unsupported");
  EXPECT_EQ(ErrorWith("hidden_act", "gelu"), "config.unsupported");
  try {
    ModelConfig::Parse(SmallConfig("gemma3").dump(), "some/config.json");
    FAIL();
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("some/config.json"));
    EXPECT_THAT(error.what(), HasSubstr("gemma3"));
    EXPECT_THAT(error.what(), HasSubstr("llama, mistral, qwen2, qwen3"));
  }
}

TEST(RopeTest, DefaultAndLinear) {
  RopeConfig rope;
  EXPECT_THAT(RopeFrequencies(rope, 4), ElementsAre(1.0, ::testing::DoubleNear(0.01, 1e-17)));
  rope.type = RopeConfig::Type::kLinear;
  rope.factor = 4.0;
  EXPECT_THAT(RopeFrequencies(rope, 4), ElementsAre(0.25, ::testing::DoubleNear(0.0025, 1e-18)));
}

// The rule written once more, by wavelengths instead of turns.
TEST(RopeTest, Llama3) {
  RopeConfig rope;
  rope.type = RopeConfig::Type::kLlama3;
  rope.theta = 500000.0;
  rope.factor = 8.0;
  rope.low_freq_factor = 1.0;
  rope.high_freq_factor = 4.0;
  rope.original_max_positions = 8192;
  const std::vector<double> frequencies = RopeFrequencies(rope, 128);
  ASSERT_EQ(frequencies.size(), 64u);
  int kept = 0;
  int slowed = 0;
  int between = 0;
  for (int i = 0; i < 64; ++i) {
    const double plain = std::pow(500000.0, -i / 64.0);
    const double wavelength = 2.0 * std::numbers::pi / plain;
    double expected = plain;
    if (wavelength > 8192.0) {
      expected = plain / 8.0;
      ++slowed;
    } else if (wavelength >= 2048.0) {
      const double smooth = (8192.0 / wavelength - 1.0) / 3.0;
      expected = (1.0 - smooth) * plain / 8.0 + smooth * plain;
      ++between;
    } else {
      ++kept;
    }
    EXPECT_NEAR(frequencies[static_cast<size_t>(i)], expected, 1e-14 * plain) << i;
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(slowed, 0);
  EXPECT_GT(between, 0);
}

}  // namespace
}  // namespace flatquant
