#include "flatquant/model/source_model.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "flatquant/model/crafted_model_for_test.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using nlohmann::json;
using testing::CraftedWeights;
using ::testing::HasSubstr;
using testing::SmallConfig;

ModelConfig Parse(const json& config) { return ModelConfig::Parse(config.dump(), "config.json"); }

SourceModel Open(const json& config, const CraftedWeights& weights) {
  const auto folder = testing::ScratchFolder();
  testing::WriteModel(folder, config, weights);
  return SourceModel::Open(folder);
}

// The message of the error that opening gives, or nothing.
std::string OpenError(const json& config, const CraftedWeights& weights) {
  try {
    Open(config, weights);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

std::vector<std::string> VisitedNames(const SourceModel& model) {
  std::vector<std::string> names;
  model.Visit([&](const std::string& name, const Tensor& tensor) {
    EXPECT_TRUE(tensor.defined()) << name;
    names.push_back(name);
  });
  return names;
}

TEST(SourceModelTest, DemoModel) {
  const SourceModel model = SourceModel::Open(testing::SourcePath("models/demo-7m"));
  uint64_t elements = 0;
  model.Visit([&](const std::string&, const Tensor& tensor) { elements += tensor.elements(); });
  // embedding + 8 blocks + final norm
  const uint64_t block = 256 * 256 * 2 + 128 * 256 * 2 + 3 * 704 * 256 + 2 * 256;
  EXPECT_EQ(elements, 4096 * 256 + 8 * block + 256);
  EXPECT_EQ(VisitedNames(model).size(), model.checkpoint().tensors().size());
  EXPECT_EQ(model.Weight(7, Linear::kK).shape, (std::vector<int64_t>{128, 256}));
  EXPECT_EQ(model.Weight(7, Linear::kK).dtype, DType::kBF16);
  EXPECT_FALSE(model.Bias(0, Linear::kK).defined());
  EXPECT_EQ(model.LmHead().data, model.Embedding().data);
}

TEST(SourceModelTest, TensorsOutliveTheModel) {
  Tensor norm;
  {
    const SourceModel model = SourceModel::Open(testing::SourcePath("models/demo-7m"));
    norm = model.FinalNorm();
  }
  for (float value : norm.ToFloat()) EXPECT_GT(value, 0.0f);
}

TEST(SourceModelTest, FixturesUseEveryTensorOfTheirFiles) {
  FLATQUANT_NEEDS_SHARED("fixtures");
  for (const char* name :
       {"llama-mha", "llama31-gqa", "llama-bf16-sharded", "qwen2", "tinystories-656k"}) {
    const SourceModel model =
        SourceModel::Open(testing::SharedPath(std::string("fixtures/") + name));
    EXPECT_EQ(VisitedNames(model).size(), model.checkpoint().tensors().size()) << name;
  }
}

TEST(SourceModelTest, TiedUnderTheNameOfTheHead) {
  FLATQUANT_NEEDS_SHARED("fixtures/tinystories-656k");
  const SourceModel model = SourceModel::Open(testing::SharedPath("fixtures/tinystories-656k"));
  EXPECT_EQ(model.checkpoint().Find("model.embed_tokens.weight"), nullptr);
  EXPECT_EQ(model.Embedding().shape, (std::vector<int64_t>{2048, 128}));
  EXPECT_EQ(model.Embedding().data, model.LmHead().data);
  EXPECT_EQ(VisitedNames(model).front(), "model.embed_tokens.weight");
}

TEST(SourceModelTest, VisitInForwardOrder) {
  json config = SmallConfig("qwen3");
  config["num_hidden_layers"] = 1;
  config["attention_bias"] = true;
  const SourceModel model = Open(config, CraftedWeights(Parse(config)));
  const std::string block = "model.layers.0.";
  EXPECT_THAT(VisitedNames(model),
              ::testing::ElementsAre(
                  "model.embed_tokens.weight", block + "input_layernorm.weight",
                  block + "self_attn.q_proj.weight", block + "self_attn.q_proj.bias",
                  block + "self_attn.k_proj.weight", block + "self_attn.k_proj.bias",
                  block + "self_attn.v_proj.weight", block + "self_attn.v_proj.bias",
                  block + "self_attn.q_norm.weight", block + "self_attn.k_norm.weight",
                  block + "self_attn.o_proj.weight", block + "self_attn.o_proj.bias",
                  block + "post_attention_layernorm.weight", block + "mlp.gate_proj.weight",
                  block + "mlp.up_proj.weight", block + "mlp.down_proj.weight", "model.norm.weight",
                  "lm_head.weight"));
}

TEST(SourceModelTest, EveryArchitectureOpens) {
  for (const char* type : {"llama", "mistral", "qwen2", "qwen3"}) {
    const json config = SmallConfig(type);
    const CraftedWeights weights(Parse(config));
    const SourceModel model = Open(config, weights);
    EXPECT_EQ(VisitedNames(model).size(), weights.tensors.size()) << type;
    // Each accessor answers the tensor of its role.
    for (int64_t layer = 0; layer < 2; ++layer) {
      for (Linear linear : kLinears) {
        const auto& expected = weights.tensors.at(LinearPath(layer, linear) + ".weight");
        EXPECT_EQ(model.Weight(layer, linear).ToFloat(), expected.ToFloat());
      }
    }
    EXPECT_NE(model.LmHead().ToFloat(), model.Embedding().ToFloat());
  }
}

TEST(SourceModelTest, MissingAnyTensorIsNamed) {
  const json config = SmallConfig("qwen3");
  const CraftedWeights complete(Parse(config));
  for (const auto& [name, tensor] : complete.tensors) {
    CraftedWeights weights = complete;
    weights.tensors.erase(name);
    const std::string message = OpenError(config, weights);
    EXPECT_THAT(message, HasSubstr("'" + name + "'"));
    EXPECT_THAT(message, HasSubstr("[model.missing_tensor]"));
  }
}

TEST(SourceModelTest, WrongShapeOrTypeIsNamed) {
  const json config = SmallConfig("qwen2");
  const CraftedWeights complete(Parse(config));
  for (const auto& [name, tensor] : complete.tensors) {
    CraftedWeights weights = complete;
    weights.Add(name, {5, 3});
    EXPECT_THAT(OpenError(config, weights), HasSubstr("'" + name + "' has shape [5, 3]"));
    EXPECT_THAT(OpenError(config, weights), HasSubstr("[model.wrong_shape]"));
    weights.tensors[name] =
        Tensor::Own(DType::kI8, tensor.shape, std::vector<int8_t>(tensor.elements(), 1));
    EXPECT_THAT(OpenError(config, weights), HasSubstr("'" + name + "' has dtype I8"));
    EXPECT_THAT(OpenError(config, weights), HasSubstr("[model.wrong_dtype]"));
  }
}

TEST(SourceModelTest, TiedByEitherName) {
  json config = SmallConfig();
  config["tie_word_embeddings"] = true;
  for (const char* kept : {"model.embed_tokens.weight", "lm_head.weight"}) {
    CraftedWeights weights(Parse(config));
    weights.tensors.erase("model.embed_tokens.weight");
    weights.Add(kept, {20, 32});
    const SourceModel model = Open(config, weights);
    EXPECT_EQ(model.Embedding().ToFloat(), weights.tensors.at(kept).ToFloat());
    EXPECT_EQ(model.LmHead().data, model.Embedding().data);
    EXPECT_EQ(VisitedNames(model).size(), weights.tensors.size());
  }
  CraftedWeights neither(Parse(config));
  neither.tensors.erase("model.embed_tokens.weight");
  EXPECT_THAT(OpenError(config, neither), HasSubstr("'model.embed_tokens.weight' is missing"));
}

TEST(SourceModelTest, TiedByMetadataAlone) {
  json config = SmallConfig();
  CraftedWeights weights(Parse(config));
  weights.tensors.erase("model.embed_tokens.weight");
  EXPECT_THAT(OpenError(config, weights), HasSubstr("[model.missing_tensor]"));
  weights.metadata["model.embed_tokens.weight"] = "lm_head.weight";
  const SourceModel model = Open(config, weights);
  EXPECT_TRUE(model.config().tied_embeddings);
  EXPECT_EQ(model.Embedding().data, model.LmHead().data);
  EXPECT_EQ(VisitedNames(model).size(), weights.tensors.size());
}

TEST(SourceModelTest, OtherNamesAreExplained) {
  const json config = SmallConfig();
  CraftedWeights weights(Parse(config));
  CraftedWeights bare = weights;
  CraftedWeights prefixed = weights;
  bare.tensors.clear();
  prefixed.tensors.clear();
  for (const auto& [name, tensor] : weights.tensors) {
    bare.tensors[name.starts_with("model.") ? name.substr(6) : name] = tensor;
    prefixed.tensors["language_model." + name] = tensor;
  }
  EXPECT_THAT(OpenError(config, bare), HasSubstr("calls it 'embed_tokens.weight'"));
  EXPECT_THAT(OpenError(config, prefixed),
              HasSubstr("calls it 'language_model.model.embed_tokens.weight'"));
}

TEST(SourceModelTest, WeightsThatTheConfigurationDeniesAreRefused) {
  const json config = SmallConfig();
  for (const char* name : {"self_attn.q_proj.bias", "mlp.down_proj.bias"}) {
    CraftedWeights weights(Parse(config));
    weights.Add(std::string("model.layers.1.") + name, {32});
    EXPECT_THAT(OpenError(config, weights), HasSubstr("[model.unexpected_tensor]")) << name;
  }
  CraftedWeights weights(Parse(config));
  weights.Add("model.layers.0.self_attn.k_norm.weight", {8});
  EXPECT_THAT(OpenError(config, weights), HasSubstr("[model.unexpected_tensor]"));
  CraftedWeights harmless(Parse(config));
  harmless.Add("model.layers.0.self_attn.rotary_emb.inv_freq", {4});
  EXPECT_EQ(OpenError(config, harmless), "");
}

TEST(SourceModelTest, QuantizedModelsAreRefused) {
  json config = SmallConfig();
  const CraftedWeights weights(Parse(config));
  config["quantization_config"] = {{"quant_method", "gptq"}};
  EXPECT_THAT(OpenError(config, weights), HasSubstr("'gptq'"));
  EXPECT_THAT(OpenError(config, weights), HasSubstr("[model.already_quantized]"));
}

TEST(SourceModelTest, FolderWithoutAModel) {
  const auto folder = testing::ScratchFolder();
  EXPECT_EQ(testing::ErrorName([&] { SourceModel::Open(folder); }), "file.open");
  testing::WriteText(folder / "config.json", SmallConfig().dump());
  EXPECT_EQ(testing::ErrorName([&] { SourceModel::Open(folder); }), "checkpoint.missing");
}

}  // namespace
}  // namespace flatquant
