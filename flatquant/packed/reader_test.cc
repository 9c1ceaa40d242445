#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>

#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/nibbles.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/test_models.h"

// Directories that are wrong in one way each.
namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using packed_test::ExpectError;
using packed_test::FileText;
using packed_test::SmallConfig;
using packed_test::SourceFolder;
using packed_test::WriteFile;
using ::testing::HasSubstr;

// A good packed directory, taken apart so that a test can change one thing.
class Crafted {
 public:
  explicit Crafted(const char* scheme = "w4a4kv4", ModelConfig config = SmallConfig()) {
    const fs::path good = testing::ScratchFolder() / "good";
    WritePackedModel(RandomPackedModel(config, Scheme::Parse(scheme), 1), SourceFolder(config),
                     good);
    config_ = json::parse(FileText(good / "config.json"));
    const Checkpoint checkpoint = Checkpoint::Open(good);
    for (const auto& [name, tensor] : checkpoint.tensors()) tensors_.emplace(name, tensor);
  }

  json& config() { return config_; }
  json& quantization() { return config_["quantization_config"]; }
  std::map<std::string, Tensor>& tensors() { return tensors_; }
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }

  // Replaces one element of a float tensor.
  void SetFloat(const std::string& name, size_t index, float value) {
    Tensor& tensor = tensors_.at(name);
    std::vector<float> values = tensor.ToFloat();
    values.at(index) = value;
    tensor = Tensor::Floats(tensor.shape, std::move(values));
  }

  fs::path Write() const {
    const fs::path folder = testing::ScratchFolder();
    WriteFile(folder / "config.json", config_.dump());
    std::vector<std::pair<std::string, TensorView>> views(tensors_.begin(), tensors_.end());
    WriteSafetensors(folder / "model.safetensors", views);
    return folder;
  }

  // Expects the reader to refuse; the message must hold `says`.
  void ExpectRefused(const std::string& name, const std::string& says) const {
    const fs::path folder = Write();
    const std::string message = ExpectError(name, [&] { ReadPackedModel(folder); });
    EXPECT_THAT(message, HasSubstr(says));
    EXPECT_THAT(message, HasSubstr(folder.string()));
  }

 private:
  json config_;
  std::map<std::string, Tensor> tensors_;
};

// The w4a4kv4 one, made once; copies share the tensors' memory.
const Crafted& Good() {
  static const Crafted good;
  return good;
}

constexpr const char* kQ = "model.layers.0.self_attn.q_proj";

TEST(Reader, TakesTheGoodDirectoryApart) {
  const PackedModel model = ReadPackedModel(Good().Write());
  EXPECT_EQ(model.blocks.size(), 2u);
}

TEST(Reader, NewerVersionsByName) {
  Crafted crafted = Good();
  crafted.quantization()["format_version"] = 5;
  crafted.ExpectRefused("packed.newer_version", "format version 5, this program reads up to 4");
  crafted.quantization()["format_version"] = std::numeric_limits<uint64_t>::max();
  crafted.ExpectRefused("packed.newer_version", "update flatquant");
  // Whatever else a newer version may have changed comes after its number.
  crafted.quantization() = {{"quant_method", "flatquant"}, {"format_version", 7}};
  crafted.config().erase("hidden_size");
  crafted.tensors().clear();
  crafted.ExpectRefused("packed.newer_version", "format version 7");
}

TEST(Reader, VersionsThatAreNone) {
  for (const json& version : {json(0), json(-1), json(1.0), json("1"), json(nullptr), json(true)}) {
    Crafted crafted = Good();
    crafted.quantization()["format_version"] = version;
    crafted.ExpectRefused("packed.bad_config", "format_version");
  }
}

TEST(Reader, OtherPeoplesDirectories) {
  Crafted crafted = Good();
  crafted.quantization()["quant_method"] = "gptq";
  crafted.ExpectRefused("packed.bad_config", "quantized by 'gptq'");
  EXPECT_FALSE(IsPackedDirectory(crafted.Write()));
  crafted.config().erase("quantization_config");
  crafted.ExpectRefused("packed.bad_config", "not a packed model");
  EXPECT_FALSE(IsPackedDirectory(crafted.Write()));
  EXPECT_TRUE(IsPackedDirectory(Good().Write()));
  EXPECT_FALSE(IsPackedDirectory(testing::ScratchFolder()));
  EXPECT_FALSE(IsPackedDirectory("/no/such/folder"));
  ExpectError("file.open", [] { ReadPackedModel("/no/such/folder"); });
  for (const char* text : {"", "[]", "{", "{\"quantization_config\": 3}", "\xff",
                           "{\"quantization_config\": {\"quant_method\": 1}}"}) {
    const fs::path folder = testing::ScratchFolder();
    WriteFile(folder / "config.json", text);
    EXPECT_FALSE(IsPackedDirectory(folder)) << text;
    ExpectError("packed.bad_config", [&] { ReadPackedModel(folder); });
  }
}

TEST(Reader, EachFieldOfTheConfigurationMustBeThere) {
  for (const char* pointer :
       {"/quant_method", "/format_version", "/scheme", "/weights", "/sites", "/cache",
        "/provenance", "/weights/up_proj", "/sites/mlp_out", "/sites/attn_in/act_bits",
        "/sites/attn_in/left", "/sites/attn_in/right", "/sites/attn_in/clips", "/cache/k_bits",
        "/cache/v_bits", "/cache/transform"}) {
    Crafted crafted = Good();
    const json::json_pointer at(pointer);
    crafted.quantization().at(at.parent_pointer()).erase(at.back());
    crafted.ExpectRefused("packed.bad_config", "has no '" + at.back() + "'");
  }
}

TEST(Reader, FieldsOfTheWrongKind) {
  const std::pair<const char*, json> cases[] = {
      {"/quant_method", 4},
      {"/scheme", "w4"},
      {"/scheme", 4},
      {"/weights", json::array()},
      {"/weights/q_proj", 1},
      {"/weights/q_proj", 9},
      {"/weights/q_proj", 12},
      {"/weights/q_proj", -4},
      {"/weights/q_proj", "4"},
      {"/weights/q_proj", 4.0},
      {"/sites", "none"},
      {"/sites/attn_in", 3},
      {"/sites/attn_in/act_bits", 17},
      {"/sites/attn_in/left", -1},
      {"/sites/attn_in/left", 5},
      {"/sites/attn_in/left", 6},
      {"/sites/attn_in/left", 25},
      {"/sites/attn_in/right", std::numeric_limits<uint64_t>::max()},
      {"/sites/attn_in/clips", 0},
      {"/sites/attn_in/clips", 2},
      {"/sites/attn_out/clips", 3},
      {"/cache", nullptr},
      {"/cache/k_bits", 0},
      {"/cache/transform", 1},
      {"/provenance", "me"},
      {"/provenance", {{"seed", 3}}},
      {"/layers", 3},
      {"/layers", {{"0", 3}}},
      {"/layers", {{"2", json::object()}}},
      {"/layers", {{"00", json::object()}}},
      {"/layers", {{"", json::object()}}},
      {"/layers", {{"-1", json::object()}}},
      {"/layers", {{"99999999999999999999", json::object()}}},
      {"/layers", {{"1", {{"weights", {{"q_proj", 9}}}}}}},
      {"/layers", {{"1", {{"sites", {{"attn_in", json::object()}}}}}}},
  };
  for (const auto& [pointer, value] : cases) {
    SCOPED_TRACE(std::string(pointer) + " = " + value.dump());
    Crafted crafted = Good();
    crafted.quantization()[json::json_pointer(pointer)] = value;
    crafted.ExpectRefused("packed.bad_config", "config.json");
  }
}

TEST(Reader, UnknownFieldsOfThisVersion) {
  for (const char* pointer : {"/group_size", "/weights/qkv_proj", "/sites/head",
                              "/sites/attn_in/zero_point", "/cache/bits"}) {
    Crafted crafted = Good();
    crafted.quantization()[json::json_pointer(pointer)] = 16;
    crafted.ExpectRefused("packed.bad_config", "unknown key");
  }
  Crafted crafted = Good();
  crafted.quantization()["layers"] = {{"1", {{"norms", 1}}}};
  crafted.ExpectRefused("packed.bad_config", "layers.1 has an unknown key 'norms'");
}

TEST(Reader, DuplicateKeysHaveNoMeaning) {
  const fs::path folder = Good().Write();
  std::string text = FileText(folder / "config.json");
  text.insert(text.find("\"scheme\""), "\"scheme\":\"w8a8\",");
  WriteFile(folder / "config.json", text);
  EXPECT_THAT(ExpectError("packed.bad_config", [&] { ReadPackedModel(folder); }),
              HasSubstr("twice"));
}

TEST(Reader, EveryTensorMustBeThere) {
  Crafted crafted = Good();
  for (const auto& [name, tensor] : Good().tensors()) {
    if (name.starts_with("model.layers.1.")) continue;  // as layer 0
    crafted.tensors().erase(name);
    crafted.ExpectRefused("packed.missing_tensor", "'" + name + "' is missing");
    crafted.tensors()[name] = tensor;
  }
}

TEST(Reader, NoTensorToSpare) {
  const Tensor spare = Tensor::Floats({1}, {1.0f});
  for (const char* name :
       {"model.layers.0.self_attn.q_proj.bias", "model.layers.2.input_layernorm.weight",
        "model.layers.00.input_layernorm.weight", "model.layers.0.self_attn.q_norm.weight",
        "model.layers.0.attn_out.transform_right", "lm_head.bias", "x"}) {
    Crafted crafted = Good();
    crafted.tensors()[name] = spare;
    crafted.ExpectRefused("packed.extra_tensor", "tensor '" + std::string(name) + "'");
  }
  Crafted tied = Good();
  tied.config()["tie_word_embeddings"] = true;
  tied.ExpectRefused("packed.extra_tensor", "lm_head.weight");
}

TEST(Reader, TypesOfTensors) {
  for (const auto& [name, tensor] : Good().tensors()) {
    if (name.starts_with("model.layers.1.")) continue;
    Crafted crafted = Good();
    Tensor wrong = tensor;
    // Another type of the same size, so that only the type is wrong.
    wrong.dtype = DTypeSize(tensor.dtype) == 4   ? DType::kI32
                  : DTypeSize(tensor.dtype) == 2 ? DType::kI16
                                                 : DType::kBool;
    crafted.tensors()[name] = wrong;
    crafted.ExpectRefused("packed.wrong_dtype", "tensor '" + name + "' is ");
  }
  Crafted crafted = Good();
  crafted.tensors()[std::string(kQ) + ".weight"].dtype = DType::kI8;
  crafted.ExpectRefused("packed.wrong_dtype", "is I8, not U8 (nibbles)");
}

TEST(Reader, ShapesOfTensors) {
  for (const auto& [name, tensor] : Good().tensors()) {
    if (name.starts_with("model.layers.1.")) continue;
    Crafted crafted = Good();
    Tensor& wrong = crafted.tensors()[name];
    wrong.shape.push_back(1);  // the same bytes
    crafted.ExpectRefused("packed.wrong_shape", "tensor '" + name + "' has shape [");
    wrong.shape.assign(1, static_cast<int64_t>(tensor.elements()));
    if (wrong.shape == tensor.shape) wrong.shape = {0};
    crafted.ExpectRefused("packed.wrong_shape", "tensor '" + name + "' has shape [");
  }
  // The bytes of W^T.
  Crafted crafted = Good();
  Tensor& weight = crafted.tensors()[std::string(kQ) + ".weight"];
  EXPECT_EQ(weight.shape, (std::vector<int64_t>{32, 12}));
  weight.shape = {12, 32};
  crafted.ExpectRefused("packed.wrong_shape", "has shape [12, 32], not [32, 12]");
}

TEST(Reader, ValuesOfTensors) {
  const float inf = std::numeric_limits<float>::infinity();
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const std::string layer = "model.layers.1.";
  const std::pair<std::string, std::vector<float>> cases[] = {
      {layer + "self_attn.q_proj.weight_scale", {0.0f, -0.0f, -1.0f, inf, -inf, nan}},
      {layer + "attn_in.transform_left", {inf, -inf, nan}},
      {layer + "mlp_out.transform_right", {inf, -inf, nan}},
      {layer + "attn_in.act_clip", {0.0f, -0.5f, 1.0000001f, inf, nan}},
      {layer + "kv_cache.k_clip", {0.0f, 1.5f, nan}},
      {layer + "kv_cache.v_clip", {0.0f, 1.5f, nan}},
      {layer + "kv_cache.k_transform", {inf, nan}},
      {layer + "kv_cache.q_transform", {inf, nan}},
      {layer + "input_layernorm.weight", {inf, nan}},
      {layer + "post_attention_layernorm.weight", {inf, nan}},
      {"model.norm.weight", {inf, nan}},
  };
  for (const auto& [name, values] : cases) {
    for (float value : values) {
      Crafted crafted = Good();
      const size_t last = crafted.tensors().at(name).elements() - 1;
      crafted.SetFloat(name, last, value);
      crafted.ExpectRefused("packed.bad_value",
                            "tensor '" + name + "': element " + std::to_string(last) + " is ");
    }
  }
  ModelConfig config = SmallConfig();
  config.architecture = Architecture::kQwen2;
  config.qkv_bias = true;
  Crafted biased("w4a16", config);
  biased.SetFloat(std::string(kQ) + ".bias", 3, nan);
  biased.ExpectRefused("packed.bad_value", "q_proj.bias': element 3 is nan");
  // Smallest and largest values that count.
  Crafted edge = Good();
  edge.SetFloat(layer + "attn_in.act_clip", 0, 1.0f);
  edge.SetFloat(layer + "attn_in.act_clip", 1, std::numeric_limits<float>::denorm_min());
  edge.SetFloat(std::string(kQ) + ".weight_scale", 0, std::numeric_limits<float>::max());
  const PackedModel model = ReadPackedModel(edge.Write());
  EXPECT_EQ(model.blocks[1].site(Site::kAttnIn).clips[0].max, 1.0f);
  EXPECT_EQ(model.blocks[1].site(Site::kAttnIn).clips[0].min,
            std::numeric_limits<float>::denorm_min());
}

TEST(Reader, LayersThatTheFilesCannotHold) {
  Crafted crafted = Good();
  crafted.config()["num_hidden_layers"] = 60000;
  crafted.ExpectRefused("packed.missing_tensor", "60000 layers");
  crafted.config()["num_hidden_layers"] = 3;
  crafted.ExpectRefused("packed.missing_tensor", "model.layers.2.");
  crafted.config()["num_hidden_layers"] = 1;
  crafted.ExpectRefused("packed.extra_tensor", "model.layers.1.");
}

TEST(Reader, BitsAndBytesMustAgree) {
  Crafted crafted = Good();
  crafted.quantization()["weights"]["q_proj"] = 8;
  crafted.ExpectRefused("packed.wrong_dtype", "q_proj.weight");
  crafted.quantization()["weights"]["q_proj"] = 16;
  crafted.ExpectRefused("packed.wrong_dtype", "q_proj.weight");
  Crafted plain("w16a16");
  plain.quantization()["weights"]["q_proj"] = 4;
  plain.ExpectRefused("packed.wrong_dtype", "q_proj.weight");
}

TEST(Reader, FindsCodesOutOfRangeOnlyWhenAsked) {
  Crafted crafted("w4a16");
  crafted.quantization()["weights"]["q_proj"] = 3;
  const fs::path folder = crafted.Write();
  const PackedModel model = ReadPackedModel(folder);
  EXPECT_EQ(model.blocks[0].linear(Linear::kQ).bits, 3);
  EXPECT_THAT(ExpectError("packed.bad_value", [&] { CheckCodes(model, folder.string()); }),
              HasSubstr("q_proj.weight': row "));
}

TEST(Reader, CopiesTensorsAtOddAddresses) {
  // A foreign writer may order tensors by name and pad nothing: one odd-sized
  // tensor puts all floats behind it at odd addresses.
  ModelConfig config = SmallConfig();
  config.hidden = 24;
  config.ffn = 43;
  const Crafted crafted("w4a4kv4", config);
  const fs::path folder = crafted.Write();
  json header = json::object();
  std::string data;
  for (const auto& [name, tensor] : crafted.tensors()) {
    const size_t begin = data.size();
    data.append(reinterpret_cast<const char*>(tensor.data), tensor.bytes());
    header[name] = {{"dtype", DTypeName(tensor.dtype)},
                    {"shape", tensor.shape},
                    {"data_offsets", {begin, data.size()}}};
  }
  std::string text = header.dump();
  if (text.size() % 2 == 0) text += " ";  // so that the data begins at an odd byte
  std::string file(8, '\0');
  for (size_t i = 0; i < 8; ++i) file[i] = static_cast<char>(text.size() >> (8 * i));
  WriteFile(folder / "model.safetensors", file + text + data);
  const PackedModel model = ReadPackedModel(folder);
  for (const Tensor* tensor :
       {&model.embedding, &model.final_norm, &model.blocks[1].linears[6].scale,
        &model.blocks[0].site(Site::kMlpOut).right, &model.blocks[1].cache.k_transform}) {
    EXPECT_EQ(reinterpret_cast<uintptr_t>(tensor->data) % DTypeSize(tensor->dtype), 0u);
  }
  const PackedModel original = RandomPackedModel(config, Scheme{}, 1);
  EXPECT_EQ(model.embedding.ToFloat(), original.embedding.ToFloat());
  EXPECT_EQ(model.blocks[1].cache.k_transform.ToFloat(),
            original.blocks[1].cache.k_transform.ToFloat());
}

TEST(Reader, DamagedWeightFilesKeepTheirOwnErrors) {
  const fs::path folder = Good().Write();
  const std::string text = FileText(folder / "model.safetensors");
  WriteFile(folder / "model.safetensors", text.substr(0, text.size() - 1));
  ExpectError("safetensors.out_of_bounds", [&] { ReadPackedModel(folder); });
  fs::remove(folder / "model.safetensors");
  ExpectError("checkpoint.missing", [&] { ReadPackedModel(folder); });
}

}  // namespace
}  // namespace flatquant
