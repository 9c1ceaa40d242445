// Weights with a scale per row and group of columns.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/packed/check.h"
#include "flatquant/packed/crafted_model_for_test.h"
#include "flatquant/packed/nibbles.h"
#include "flatquant/packed/sizes.h"
#include "flatquant/packed/test_models.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using packed_test::ExpectError;
using packed_test::FileText;
using packed_test::SmallConfig;
using packed_test::SourceFolder;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Widths are 24, 32 and 44: no group of 10 columns divides one.
PackedModel GroupedModel(int64_t group_size = 10, const char* scheme = "w4a16") {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme::Parse(scheme), 1);
  GroupRandomModel(2, group_size, &model);
  return model;
}

fs::path Written(const PackedModel& model) {
  const fs::path folder = testing::ScratchFolder() / "packed";
  WritePackedModel(model, SourceFolder(model.config), folder);
  return folder;
}

json QuantizationConfigOf(const fs::path& folder) {
  return json::parse(FileText(folder / "config.json"))["quantization_config"];
}

TEST(Groups, DequantizeWithTheScaleOfTheColumn) {
  const std::vector<int8_t> codes = {1, -2, 3, -4, 5, 7, 6, 5, 4, -8};
  PackedLinear linear;
  linear.bits = 4;
  linear.group_size = 2;
  linear.weight = PackCodes(4, 2, 5, codes.data());
  linear.scale = Tensor::Floats({2, 3}, {1, 10, 100, 2, 20, 200});
  std::vector<float> row(5);
  DequantizeRow(linear, 0, 5, row.data());
  EXPECT_THAT(row, ElementsAre(1, -2, 30, -40, 500));
  DequantizeRow(linear, 1, 5, row.data());
  EXPECT_THAT(row, ElementsAre(14, 12, 100, 80, -1600));
}

TEST(Groups, ComeBackFromAFile) {
  for (const char* scheme : {"w4a16", "w3a4kv4", "w8a8"}) {
    for (const int64_t group_size : {1, 7, 10, 24, 31, 43}) {
      const PackedModel model = GroupedModel(group_size, scheme);
      const PackedModel read = ReadPackedModel(Written(model));
      for (size_t i = 0; i < model.blocks.size(); ++i) {
        for (Linear which : kLinears) {
          const PackedLinear& from = model.blocks[i].linear(which);
          const PackedLinear& to = read.blocks[i].linear(which);
          const bool has_groups = ShapeOf(model.config, which).cols > group_size;
          EXPECT_EQ(to.group_size, has_groups ? group_size : 0);
          EXPECT_EQ(from.scale.shape, to.scale.shape);
          EXPECT_EQ(std::memcmp(from.scale.data, to.scale.data, from.scale.bytes()), 0);
        }
      }
      CheckCodes(read, "test");
    }
  }
}

// The version says what is needed to read a file, not what wrote it.
TEST(Groups, OnlyGroupedModelsNeedVersion4) {
  const json plain = QuantizationConfigOf(Written(GroupedModel(44)));
  EXPECT_EQ(plain["format_version"], 2);
  EXPECT_FALSE(plain.contains("weight_groups"));
  PackedModel model = GroupedModel(32, "w4a4");  // smaller than down_proj's rows alone
  EXPECT_EQ(QuantizationConfigOf(Written(model))["weight_groups"], json({{"down_proj", 32}}));
  FlattenRandomModel(3, &model);
  GroupRandomModel(4, 32, &model);
  EXPECT_EQ(QuantizationConfigOf(Written(model))["format_version"], 4);
}

// A block that differs says so, and a row's scale overrides a group's.
TEST(Groups, BlocksMayDiffer) {
  PackedModel model = GroupedModel();
  PackedModel other = RandomPackedModel(model.config, model.scheme, 1);
  model.blocks[1].linear(Linear::kUp) = other.blocks[1].linear(Linear::kUp);
  const fs::path folder = Written(model);
  EXPECT_EQ(QuantizationConfigOf(folder)["layers"]["1"]["weight_groups"], json({{"up_proj", 0}}));
  const PackedModel read = ReadPackedModel(folder);
  EXPECT_EQ(read.blocks[0].linear(Linear::kUp).group_size, 10);
  EXPECT_EQ(read.blocks[1].linear(Linear::kUp).group_size, 0);
  EXPECT_EQ(read.blocks[1].linear(Linear::kGate).group_size, 10);
}

TEST(Groups, ScalesCount) {
  // Groups of 10: 3 scales per row of 24, 4 of 32, 5 of 44, in place of one.
  constexpr uint64_t kMore = 2 * (2 * (32 + 16 + 16) + 3 * 24 + 2 * (44 + 44) + 4 * 24);
  EXPECT_EQ(SizesOf(GroupedModel()).total() - SizesOf(GroupedModel(44)).total(),
            kMore * sizeof(float));
}

class CraftedGroups : public packed_test::CraftedModel {
 protected:
  CraftedGroups() : CraftedModel(Written(GroupedModel())) {}
};

TEST_F(CraftedGroups, Configurations) {
  const auto refused = [&](const json& value, const char* says) {
    SCOPED_TRACE(value.dump());
    ExpectRefused([&] { quantization()["weight_groups"]["k_proj"] = value; }, "packed.bad_config",
                  says);
  };
  for (const json& value : {json(-1), json(10.0), json("10"), json(nullptr), json(true)}) {
    refused(value, "weight_groups.k_proj is not an integer");
  }
  refused(24, "smaller than a row");
  refused(std::numeric_limits<int64_t>::max(), "smaller than a row");
  refused(std::numeric_limits<uint64_t>::max(), "weight_groups.k_proj is not an integer");
  ExpectRefused([&] { quantization()["weight_groups"] = 10; }, "packed.bad_config",
                "is not an object");
  ExpectRefused([&] { quantization()["weight_groups"]["lm_head"] = 10; }, "packed.bad_config",
                "unknown key");
  ExpectRefused([&] { quantization()["weights"]["k_proj"] = 16; }, "packed.bad_config",
                "of integers");
  ExpectRefused([&] { quantization()["layers"]["1"]["weight_groups"]["k_proj"] = 24; },
                "packed.bad_config", "layers.1.weight_groups.k_proj is 24");
  // The field has no meaning before version 4, and version 5 none here.
  ExpectRefused([&] { quantization()["format_version"] = 3; }, "packed.bad_config", "unknown key");
  ExpectRefused(
      [&] {
        quantization()["format_version"] = 3;
        quantization().erase("weight_groups");
        quantization()["layers"]["1"]["weight_groups"]["k_proj"] = 5;
      },
      "packed.bad_config", "unknown key");
  ExpectRefused([&] { quantization()["format_version"] = 5; }, "packed.newer_version", "5");
}

TEST_F(CraftedGroups, Tensors) {
  const std::string scale = "model.layers.0.self_attn.k_proj.weight_scale";  // [16, 3]
  ExpectRefused([&] { tensors_.erase(scale); }, "packed.missing_tensor", scale);
  for (const std::vector<int64_t>& shape :
       {std::vector<int64_t>{48}, {16, 3, 1}, {3, 16}, {24, 2}, {8, 6}, {48, 1}}) {
    ExpectRefused([&] { tensors_[scale].shape = shape; }, "packed.wrong_shape", "not [16, 3]");
  }
  ExpectRefused([&] { quantization()["weight_groups"]["k_proj"] = 12; }, "packed.wrong_shape",
                "not [16, 2]");
  ExpectRefused([&] { quantization()["weight_groups"]["k_proj"] = 1; }, "packed.wrong_shape",
                "not [16, 24]");
  ExpectRefused([&] { quantization()["weight_groups"]["k_proj"] = 0; }, "packed.wrong_shape",
                "not [16]");
  ExpectRefused([&] { tensors_[scale].dtype = DType::kI32; }, "packed.wrong_dtype", scale);
  for (float value : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                      std::numeric_limits<float>::quiet_NaN()}) {
    std::vector<float> scales(48, 1.0f);
    scales.back() = value;
    ExpectRefused(
        [&] {
          tensors_[scale] = Tensor::Floats({16, 3}, scales);
        },
        "packed.bad_value", scale);
  }
}

TEST(Groups, ModelsInMemoryAreCheckedToo) {
  const auto refused = [](const char* name, const std::function<void(PackedLinear*)>& change) {
    PackedModel model = GroupedModel();
    change(&model.blocks[1].linear(Linear::kDown));
    return ExpectError(name, [&] { CheckPackedModel(model, "test"); });
  };
  refused("packed.bad_config", [](PackedLinear* linear) { linear->group_size = 44; });
  refused("packed.bad_config", [](PackedLinear* linear) { linear->group_size = -1; });
  refused("packed.bad_config", [](PackedLinear* linear) { linear->bits = 16; });
  refused("packed.wrong_shape", [](PackedLinear* linear) { linear->group_size = 0; });
  refused("packed.wrong_shape", [](PackedLinear* linear) { linear->group_size = 12; });
  refused("packed.wrong_shape",
          [](PackedLinear* linear) { linear->scale = Tensor::Floats({1}, {1}); });
}

}  // namespace
}  // namespace flatquant
