#include "flatquant/packed/flattening.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <nlohmann/json.hpp>

#include "flatquant/packed/check.h"
#include "flatquant/packed/crafted_model_for_test.h"
#include "flatquant/packed/linear_compute.h"
#include "flatquant/packed/quantization_config.h"
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

PackedModel FlattenedModel(const char* scheme = "w4a4kv4") {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme::Parse(scheme), 1);
  FlattenRandomModel(2, &model);
  return model;
}

fs::path Written(const PackedModel& model) {
  const fs::path folder = testing::ScratchFolder() / "packed";
  WritePackedModel(model, SourceFolder(model.config), folder);
  return folder;
}

bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.dtype == b.dtype && a.shape == b.shape && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

TEST(Flattening, ComesBackFromAFile) {
  for (const char* scheme : {"w4a4kv4", "w8a8", "w3a5", "w16a4"}) {
    const PackedModel model = FlattenedModel(scheme);
    const PackedModel read = ReadPackedModel(Written(model));
    for (size_t i = 0; i < model.blocks.size(); ++i) {
      for (Site site : kSites) {
        const PackedSite& from = model.blocks[i].site(site);
        const PackedSite& to = read.blocks[i].site(site);
        ASSERT_TRUE(to.is_flattened());
        EXPECT_FALSE(to.has_transform());
        EXPECT_TRUE(SameBytes(from.act_scale, to.act_scale));
        EXPECT_TRUE(SameBytes(from.extra_columns, to.extra_columns));
        EXPECT_EQ(to.clips.size(), 1u);
        for (Linear linear : LinearsOf(site)) {
          EXPECT_TRUE(SameBytes(model.blocks[i].linear(linear).weight,
                                read.blocks[i].linear(linear).weight));
        }
      }
    }
    CheckCodes(read, "test");
  }
}

// The version says what is needed to read a file, not what wrote it.
TEST(Flattening, OnlyFlattenedModelsNeedVersion3) {
  const auto version = [](const PackedModel& model) {
    const json config = json::parse(FileText(Written(model) / "config.json"));
    return config["quantization_config"]["format_version"].get<int>();
  };
  EXPECT_EQ(version(RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4"), 1)), 2);
  EXPECT_EQ(version(FlattenedModel()), 3);
}

TEST(Flattening, AConstantStepWithoutExtraColumns) {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4"), 1);
  PackedSite& site = model.blocks[1].site(Site::kMlpIn);
  site = {};
  site.act_bits = 4;
  site.act_scale = Tensor::Floats({1}, {0.25f});
  const PackedModel read = ReadPackedModel(Written(model));
  EXPECT_EQ(read.blocks[1].site(Site::kMlpIn).act_scale.ToFloat()[0], 0.25f);
  EXPECT_FALSE(read.blocks[1].site(Site::kMlpIn).extra_columns.defined());
  EXPECT_FALSE(read.blocks[0].site(Site::kMlpIn).is_flattened());
}

TEST(Flattening, ShapesFollowTheSite) {
  const PackedModel model = FlattenedModel();
  const PackedBlock& block = model.blocks[0];
  const PackedSite& site = block.site(Site::kMlpOut);
  const LinearShape shape = StoredShape(model.config, block, Linear::kDown);
  EXPECT_EQ(shape.rows, 24);
  EXPECT_EQ(shape.cols, 44 + site.extra_columns.shape[0]);
  EXPECT_EQ(ColumnsOf(site, 44), shape.cols);
  EXPECT_EQ(ColumnsOf(PackedSite{}, 44), 44);
  const std::vector<ExtraColumn> columns = {{0, 1}, {3, 0}, {3, 1}};
  EXPECT_EQ(UnpackExtraColumns(PackExtraColumns(columns)), columns);
  EXPECT_FALSE(PackExtraColumns({}).defined());
  EXPECT_LT(SizesOf(RandomPackedModel(model.config, model.scheme, 1)).total(),
            SizesOf(model).total());
}

TEST(Flattening, ComputeByWidth) {
  // attn_in 24 x (32 + 16 + 16), attn_out 32 x 24, mlp_in 24 x (44 + 44), mlp_out 44 x 24.
  constexpr uint64_t kNetwork = 2 * (1536 + 768 + 2112 + 1056);
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4"), 1);
  EXPECT_EQ(ComputeOf(model).int4, kNetwork);
  EXPECT_EQ(ComputeOf(model).Text(), "100.0% INT4");
  for (Linear which : {Linear::kGate, Linear::kUp}) model.blocks[0].linear(which).bits = 8;
  model.blocks[1].site(Site::kMlpOut).act_bits = 16;
  PackedSite& site = model.blocks[1].site(Site::kAttnOut);
  site.extra_columns = PackExtraColumns(std::vector<ExtraColumn>{{0, 1}, {0, 2}, {7, 1}});
  const LinearCompute compute = ComputeOf(model);
  EXPECT_EQ(compute.int8, 2112u);
  EXPECT_EQ(compute.other, 1056u);
  EXPECT_EQ(compute.network, kNetwork);
  EXPECT_EQ(compute.total(), kNetwork + 3 * 24);
  EXPECT_NEAR(compute.growth(), 1.0 + 72.0 / kNetwork, 1e-12);
  EXPECT_NEAR(compute.int4_share() + compute.int8_share() + compute.other_share(), 1, 1e-12);
  EXPECT_EQ(compute.Text(),
            "71.2% INT4, 19.2% INT8, 9.6% floating point, 1.01 times the network's multiply-adds");
}

TEST(Flattening, RowsOfExtraColumns) {
  constexpr int64_t kWidth = 10;
  const auto check = [](const std::vector<ExtraColumn>& columns, int bits) {
    CheckExtraColumns(PackExtraColumns(columns), kWidth, bits, "tensor 'x'", "here");
  };
  check({}, 4);
  check({{0, 0}, {0, 0}, {0, 1}, {0, 1}, {0, 2}, {4, 1}, {9, 1}, {9, 2}}, 4);
  std::vector<ExtraColumn> longest;
  for (int32_t piece = 1; piece < 258; ++piece) longest.push_back({5, piece});
  check(longest, 8);  // 258 pieces of 127 are 32766
  longest.push_back({5, 258});
  const std::pair<std::vector<ExtraColumn>, const char*> faults[] = {
      {{{-1, 1}}, "row 0, channel -1, piece 1, is no channel"},
      {{{0, 1}, {10, 1}}, "row 1, channel 10, piece 1, is no channel"},
      {{{2147483647, 1}}, "is no channel"},
      {{{0, -1}}, "leaves out a piece"},
      {{{0, 2}}, "leaves out a piece"},
      {{{0, 1}, {0, 3}}, "leaves out a piece"},
      {{{0, 2147483647}}, "leaves out a piece"},
      {{{1, 1}, {0, 1}}, "comes after one that is greater"},
      {{{1, 1}, {1, 0}}, "comes after one that is greater"},
      {{{1, -2147483647 - 1}}, "leaves out a piece"},
      {longest, "reaches beyond 16 bits"},
  };
  for (const auto& fault : faults) {
    EXPECT_THAT(ExpectError("packed.bad_value", [&] { check(fault.first, 8); }),
                HasSubstr(fault.second));
  }
}

class CraftedFlattening : public packed_test::CraftedModel {
 protected:
  CraftedFlattening() : CraftedModel(Written(FlattenedModel())) {}

  json& site() { return quantization()["sites"]["attn_in"]; }
};

TEST_F(CraftedFlattening, Configurations) {
  const auto refused = [&](const char* key, const json& value, const char* says) {
    SCOPED_TRACE(std::string(key) + " = " + value.dump());
    ExpectRefused([&] { site()[key] = value; }, "packed.bad_config", says);
  };
  refused("extra_columns", -1, "extra_columns");
  refused("extra_columns", 1.0, "extra_columns");
  refused("extra_columns", "3", "extra_columns");
  refused("extra_columns", nullptr, "extra_columns");
  refused("extra_columns", 131072, "extra_columns");
  refused("extra_columns", 131071, "at most 131071 columns");
  refused("extra_columns", 131071 - 23, "at most 131071 columns");
  refused("extra_columns", std::numeric_limits<uint64_t>::max(), "extra_columns");
  refused("act_bits", 16, "extra_columns");
  refused("left", 4, "extra_columns");
  refused("right", 6, "extra_columns");
  refused("clips", 1, "clips");
  // The field has no meaning in version 2.
  ExpectRefused([&] { config_["quantization_config"]["format_version"] = 2; }, "packed.bad_config",
                "unknown key");
}

TEST_F(CraftedFlattening, Tensors) {
  const std::string path = "model.layers.0.attn_in.";
  const std::string scale = path + "act_scale", columns = path + "extra_columns";
  ExpectRefused([&] { tensors_.erase(scale); }, "packed.missing_tensor", scale);
  ExpectRefused([&] { tensors_.erase(columns); }, "packed.missing_tensor", columns);
  ExpectRefused(
      [&] {
        tensors_[path + "act_clip"] = Tensor::Floats({1, 2}, {1, 1});
      },
      "packed.extra_tensor", "act_clip");
  for (float value : {0.0f, -1.0f, std::numeric_limits<float>::infinity(),
                      std::numeric_limits<float>::quiet_NaN()}) {
    ExpectRefused([&] { tensors_[scale] = Tensor::Floats({1}, {value}); }, "packed.bad_value",
                  scale);
  }
  ExpectRefused(
      [&] {
        tensors_[scale] = Tensor::Floats({2}, {1, 1});
      },
      "packed.wrong_shape", scale);
  ExpectRefused([&] { tensors_[columns].dtype = DType::kF32; }, "packed.wrong_dtype",
                "is F32, not I32");
  ExpectRefused([&] { tensors_[columns].shape = {tensors_[columns].shape[0] * 2}; },
                "packed.wrong_shape", columns);
  ExpectRefused([&] { site()["extra_columns"] = 1; }, "packed.wrong_shape", columns);
  std::vector<ExtraColumn> rows = UnpackExtraColumns(tensors_[columns]);
  rows.back().channel = 24;
  ExpectRefused([&] { tensors_[columns] = PackExtraColumns(rows); }, "packed.bad_value",
                "is no channel of the site");
  // The weights' columns are the channels and the extra ones.
  const std::string weight = "model.layers.0.self_attn.k_proj.weight";
  ExpectRefused([&] { tensors_[weight].shape = {12, 16}; }, "packed.wrong_shape", weight);
}

TEST(Flattening, ModelsInMemoryAreCheckedToo) {
  const auto refused = [](const char* name, const std::function<void(PackedSite*)>& change) {
    PackedModel model = FlattenedModel();
    change(&model.blocks[1].site(Site::kMlpIn));
    return ExpectError(name, [&] { CheckPackedModel(model, "test"); });
  };
  refused("packed.bad_config", [](PackedSite* site) { site->left = Tensor::Floats({1, 1}, {1}); });
  refused("packed.bad_config", [](PackedSite* site) { site->act_bits = 16; });
  refused("packed.bad_value",
          [](PackedSite* site) { site->act_scale = Tensor::Floats({1}, {-1}); });
  refused("packed.wrong_shape", [](PackedSite* site) { site->extra_columns = {}; });
  refused("packed.wrong_shape", [](PackedSite* site) { site->act_scale = {}; });
}

}  // namespace
}  // namespace flatquant
