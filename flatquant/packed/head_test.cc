#include "flatquant/packed/head.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <vector>

#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/nibbles.h"
#include "flatquant/packed/test_models.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using packed_test::ExpectError;
using packed_test::FileText;
using packed_test::SmallConfig;
using packed_test::SourceFolder;
using packed_test::WriteFile;

PackedModel ModelWithHead(int bits, int act_bits, bool tied) {
  ModelConfig config = SmallConfig();
  config.tied_embeddings = tied;
  config.hidden = 24;
  PackedModel model = RandomPackedModel(config, Scheme{}, 1);
  QuantizeHead(bits, act_bits, &model);
  return model;
}

// No element is off by more than half a step of its row: that of the largest
// magnitude with 8 bits; with fewer, clipped ones may be, but not the row as a whole.
TEST(QuantizeHead, ErrorsAreHalfAStep) {
  for (bool tied : {false, true}) {
    ModelConfig config = SmallConfig();
    config.tied_embeddings = tied;
    PackedModel model = RandomPackedModel(config, Scheme{}, 1);
    const std::vector<float> before = (tied ? model.embedding : model.lm_head).ToFloat();
    const std::vector<float> embedding = model.embedding.ToFloat();
    QuantizeHead(8, 8, &model);
    EXPECT_EQ(model.head.bits, 8);
    EXPECT_EQ(model.head.act_bits, 8);
    const std::vector<float> after =
        Dequantize(HeadLinear(model), config.vocab, config.hidden).ToFloat();
    const std::vector<float> scales = model.head.scale.ToFloat();
    const auto cols = static_cast<size_t>(config.hidden);
    for (size_t i = 0; i < before.size(); ++i) {
      // Half a step, and float's rounding of the quotient and the product.
      ASSERT_LE(std::abs(before[i] - after[i]), scales[i / cols] * 0.5001f) << i;
    }
    const auto table = Dequantize(EmbeddingTable(model), config.vocab, config.hidden).ToFloat();
    EXPECT_EQ(table, tied ? after : embedding);
  }
}

double SquaredError(int bits, bool whole_range) {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 3);
  const std::vector<float> before = model.lm_head.ToFloat();
  const auto cols = static_cast<size_t>(model.config.hidden);
  double error = 0;
  if (whole_range) {
    for (size_t r = 0; r < before.size(); r += cols) {
      float largest = 0;
      for (size_t c = 0; c < cols; ++c) largest = std::max(largest, std::abs(before[r + c]));
      const float step = largest / static_cast<float>(LargestCode(bits));
      for (size_t c = 0; c < cols; ++c) {
        error += std::pow(before[r + c] - step * std::nearbyint(before[r + c] / step), 2.0);
      }
    }
    return error;
  }
  QuantizeHead(bits, 16, &model);
  const auto after = Dequantize(HeadLinear(model), model.config.vocab, model.config.hidden);
  const std::vector<float> values = after.ToFloat();
  for (size_t i = 0; i < before.size(); ++i) error += std::pow(before[i] - values[i], 2.0);
  return error;
}

TEST(QuantizeHead, FewBitsSearchTheirRange) {
  EXPECT_LT(SquaredError(3, false), 0.95 * SquaredError(3, true));
  EXPECT_LE(SquaredError(4, false), SquaredError(4, true));
}

TEST(QuantizeHead, RowsOfZerosStayZero) {
  PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 1);
  std::vector<float> values(static_cast<size_t>(model.config.vocab * model.config.hidden), 0.0f);
  values[30] = -2;  // in row 1
  model.lm_head = Tensor::Floats({model.config.vocab, model.config.hidden}, values);
  QuantizeHead(4, 16, &model);
  EXPECT_EQ(model.head.scale.ToFloat()[0], 1);
  EXPECT_EQ(Dequantize(HeadLinear(model), 2, model.config.hidden).ToFloat()[0], 0);
  CheckPackedModel(model, "test");
}

// Takes a directory apart, lets `change` spoil it and expects the reader's error.
template <typename Change>
void ExpectRefused(const PackedModel& model, const std::string& error, const Change& change) {
  const fs::path good = testing::ScratchFolder() / "good";
  WritePackedModel(model, SourceFolder(model.config), good);
  json config = json::parse(FileText(good / "config.json"));
  std::map<std::string, Tensor> tensors;
  const Checkpoint checkpoint = Checkpoint::Open(good);
  for (const auto& [name, tensor] : checkpoint.tensors()) tensors.emplace(name, tensor);
  change(config["quantization_config"], tensors);
  const fs::path folder = testing::ScratchFolder();
  WriteFile(folder / "config.json", config.dump());
  const std::vector<std::pair<std::string, TensorView>> views(tensors.begin(), tensors.end());
  WriteSafetensors(folder / "model.safetensors", views);
  if (error.empty()) {
    ReadPackedModel(folder);
  } else {
    ExpectError(error, [&] { ReadPackedModel(folder); });
  }
}

using Tensors = std::map<std::string, Tensor>;

TEST(Head, FaultsAreRefused) {
  const PackedModel model = ModelWithHead(8, 8, false);
  const auto refused = [&](const std::string& error, const auto& change) {
    ExpectRefused(model, error, change);
  };
  refused("", [](json&, Tensors&) {});
  for (const json& bad : {json(1), json(9), json(17), json(-8), json("8"), json(8.0), json()}) {
    refused("packed.bad_config", [&](json& config, Tensors&) { config["lm_head"]["bits"] = bad; });
    refused("packed.bad_config",
            [&](json& config, Tensors&) { config["lm_head"]["act_bits"] = bad; });
  }
  refused("packed.bad_config", [](json& config, Tensors&) { config.erase("lm_head"); });
  refused("packed.bad_config", [](json& config, Tensors&) { config["lm_head"] = 8; });
  refused("packed.bad_config", [](json& config, Tensors&) { config["lm_head"]["clip"] = 1; });
  refused("packed.bad_config", [](json& config, Tensors&) { config["lm_head"].erase("act_bits"); });
  // Version 1 knows no such field.
  refused("packed.bad_config", [](json& config, Tensors&) { config["format_version"] = 1; });
  refused("packed.wrong_dtype", [](json& config, Tensors&) { config["lm_head"]["bits"] = 4; });
  refused("packed.wrong_dtype", [](json& config, Tensors&) { config["lm_head"]["bits"] = 16; });
  refused("packed.missing_tensor",
          [](json&, Tensors& tensors) { tensors.erase("lm_head.weight_scale"); });
  refused("packed.wrong_shape", [](json&, Tensors& tensors) {
    tensors["lm_head.weight_scale"] = Tensor::Floats({2}, {1, 1});
  });
  for (float bad : {0.0f, -1.0f, INFINITY, NAN}) {
    refused("packed.bad_value", [&](json&, Tensors& tensors) {
      Tensor& scale = tensors.at("lm_head.weight_scale");
      std::vector<float> values = scale.ToFloat();
      values[3] = bad;
      scale = Tensor::Floats(scale.shape, values);
    });
  }
  // The embedding is not tied: codes there are another type than its own.
  refused("packed.wrong_dtype", [](json&, Tensors& tensors) {
    tensors["model.embed_tokens.weight"] = tensors.at("lm_head.weight");
  });
}

TEST(Head, TiedTablesAreTheEmbedding) {
  const PackedModel model = ModelWithHead(8, 8, true);
  ExpectRefused(model, "", [](json&, Tensors& tensors) {
    EXPECT_TRUE(tensors.contains("model.embed_tokens.weight_scale"));
    EXPECT_FALSE(tensors.contains("lm_head.weight"));
  });
  ExpectRefused(model, "packed.extra_tensor", [](json&, Tensors& tensors) {
    tensors["lm_head.weight"] = tensors.at("model.embed_tokens.weight");
  });
  ExpectRefused(model, "packed.missing_tensor",
                [](json&, Tensors& tensors) { tensors.erase("model.embed_tokens.weight_scale"); });
}

TEST(Head, OlderFilesStayReadable) {
  const PackedModel model = RandomPackedModel(SmallConfig(), Scheme{}, 1);
  ExpectRefused(model, "", [](json& config, Tensors&) {
    config["format_version"] = 1;
    config.erase("lm_head");
  });
}

TEST(Head, CodesBeyondTheirBitsAreFound) {
  PackedModel model = ModelWithHead(3, 16, true);
  std::vector<std::byte> bytes(model.embedding.data,
                               model.embedding.data + model.embedding.bytes());
  CheckCodes(model, "test");
  bytes.back() = std::byte{0x70};
  model.embedding = Tensor::Own(DType::kU8, model.embedding.shape, std::move(bytes));
  EXPECT_THAT(ExpectError("packed.bad_value", [&] { CheckCodes(model, "test"); }),
              ::testing::HasSubstr("model.embed_tokens.weight': row 19"));
}

TEST(Head, TheWriterRefusesWhatHasNoPlace) {
  PackedModel model = ModelWithHead(8, 8, false);
  model.head.bits = 16;  // and the scale stays
  ExpectError("packed.wrong_dtype", [&] { CheckPackedModel(model, "test"); });
  model = RandomPackedModel(SmallConfig(), Scheme{}, 1);
  model.head.scale = Tensor::Floats({model.config.vocab}, std::vector<float>(20, 1.0f));
  ExpectError("packed.extra_tensor", [&] { CheckPackedModel(model, "test"); });
  model.head.scale = {};
  model.head.act_bits = 12;
  ExpectError("packed.bad_config", [&] { CheckPackedModel(model, "test"); });
}

}  // namespace
}  // namespace flatquant
