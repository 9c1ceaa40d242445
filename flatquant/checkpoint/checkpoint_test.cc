#include "flatquant/checkpoint/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/checkpoint/safetensors_writer.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::ElementsAre;
using testing::ErrorMessage;
using testing::ErrorName;
using ::testing::HasSubstr;
using testing::WriteBytes;

constexpr char kIndex[] = "model.safetensors.index.json";

void WriteShard(const fs::path& path, const std::vector<std::string>& names, float value) {
  const Tensor tensor = Tensor::Floats({1}, {value});
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const std::string& name : names) tensors.emplace_back(name, tensor);
  WriteSafetensors(path, tensors, {{"format", "pt"}, {path.stem().string(), "x"}});
}

// A folder with two shards, "a" and "b" in the first, "c" in the second.
fs::path Sharded(const json& weight_map) {
  const fs::path folder = testing::ScratchFolder();
  WriteShard(folder / "1.safetensors", {"a", "b"}, 1.0f);
  WriteShard(folder / "2.safetensors", {"b", "c"}, 2.0f);
  WriteBytes(folder / kIndex, json{{"weight_map", weight_map}}.dump());
  return folder;
}

std::string OpenError(const fs::path& path) {
  return ErrorName([&] { Checkpoint::Open(path); });
}

TEST(CheckpointTest, DemoModel) {
  const auto folder = testing::SourcePath("models/demo-7m");
  const Checkpoint checkpoint = Checkpoint::Open(folder);
  const Tensor* embedding = checkpoint.Find("model.embed_tokens.weight");
  ASSERT_NE(embedding, nullptr);
  EXPECT_EQ(embedding->ShapeString(), "[4096, 256]");
  EXPECT_EQ(embedding->dtype, DType::kBF16);
  EXPECT_EQ(checkpoint.Find("lm_head.weight"), nullptr);
  EXPECT_EQ(checkpoint.metadata().at("format"), "pt");
  EXPECT_THAT(checkpoint.files(), ElementsAre(folder / "model.safetensors"));
  EXPECT_EQ(Checkpoint::Open(folder / "model.safetensors").tensors().size(),
            checkpoint.tensors().size());
}

TEST(CheckpointTest, ShardedFixture) {
  FLATQUANT_NEEDS_SHARED("fixtures/llama-bf16-sharded");
  const Checkpoint checkpoint =
      Checkpoint::Open(testing::SharedPath("fixtures/llama-bf16-sharded"));
  EXPECT_EQ(checkpoint.files().size(), 8u);
  EXPECT_EQ(checkpoint.tensors().size(), 30u);
}

TEST(CheckpointTest, TheIndexDecides) {
  const Checkpoint checkpoint = Checkpoint::Open(
      Sharded({{"a", "1.safetensors"}, {"b", "2.safetensors"}, {"c", "2.safetensors"}}));
  EXPECT_EQ(checkpoint.tensors().size(), 3u);
  EXPECT_EQ(checkpoint.Find("a")->ToFloat()[0], 1.0f);
  EXPECT_EQ(checkpoint.Find("b")->ToFloat()[0], 2.0f);
  EXPECT_EQ(checkpoint.files().size(), 2u);
  EXPECT_EQ(checkpoint.metadata().size(), 3u);  // format and a key of each shard
}

TEST(CheckpointTest, Missing) {
  const fs::path folder = testing::ScratchFolder();
  EXPECT_EQ(OpenError(folder / "none"), "checkpoint.missing");
  EXPECT_EQ(OpenError(folder), "checkpoint.missing");
  WriteBytes(folder / "pytorch_model.bin", "");
  EXPECT_THAT(ErrorMessage([&] { Checkpoint::Open(folder); }), HasSubstr("pytorch_model.bin"));
}

TEST(CheckpointTest, MissingShard) {
  const fs::path folder = Sharded({{"a", "3.safetensors"}});
  EXPECT_EQ(OpenError(folder), "checkpoint.missing_shard");
  EXPECT_THAT(ErrorMessage([&] { Checkpoint::Open(folder); }), HasSubstr("'3.safetensors'"));
}

TEST(CheckpointTest, WrongShard) {
  const fs::path folder = Sharded({{"a", "1.safetensors"}, {"c", "1.safetensors"}});
  EXPECT_EQ(OpenError(folder), "checkpoint.wrong_shard");
  EXPECT_THAT(ErrorMessage([&] { Checkpoint::Open(folder); }), HasSubstr("'c'"));
}

TEST(CheckpointTest, ShardsAreValidated) {
  const fs::path folder = Sharded({{"a", "1.safetensors"}, {"c", "2.safetensors"}});
  fs::resize_file(folder / "2.safetensors", fs::file_size(folder / "2.safetensors") - 1);
  EXPECT_EQ(OpenError(folder), "safetensors.out_of_bounds");
}

TEST(CheckpointTest, BadIndex) {
  const fs::path folder = Sharded({{"a", "1.safetensors"}});
  for (const std::string& text :
       {std::string(), std::string("{"), std::string("[]"), std::string("{}"),
        std::string(R"({"weight_map": []})"), std::string(R"({"weight_map": {}})"),
        std::string(R"({"weight_map": {"a": 1}})"),
        std::string(R"({"weight_map": {"a": "1.safetensors", "a": "2.safetensors"}})"),
        std::string(R"({"weight_map": {"a": "1.safetensors"}, "weight_map": {}})"),
        R"({"weight_map": )" + std::string(1'000'000, '[')}) {
    WriteBytes(folder / kIndex, text);
    EXPECT_EQ(OpenError(folder), "checkpoint.bad_index") << text.substr(0, 80);
  }
}

TEST(CheckpointTest, ShardNamesCannotLeaveTheFolder) {
  for (const char* name : {"", ".", "..", "../1.safetensors", "/etc/hostname", "sub/1.safetensors",
                           "./1.safetensors", "..\\1.safetensors"}) {
    EXPECT_EQ(OpenError(Sharded({{"a", name}})), "checkpoint.bad_index") << name;
  }
  EXPECT_EQ(OpenError(Sharded({{"a", std::string("1.safetensors\0x", 15)}})),
            "checkpoint.bad_index");
}

TEST(CheckpointTest, ASingleFileComesBeforeAnIndex) {
  const fs::path folder = Sharded({{"a", "1.safetensors"}});
  WriteShard(folder / "model.safetensors", {"whole"}, 3.0f);
  EXPECT_NE(Checkpoint::Open(folder).Find("whole"), nullptr);
}

}  // namespace
}  // namespace flatquant
