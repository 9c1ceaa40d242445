#include "flatquant/compress/import_original.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/file.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/compress/original_names.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using compress::FromTorch;
using compress::RandomWindows;
using compress::TinyLlama;
using compress::ToTorch;
using compress::WriteTinyModel;
using testing::ErrorMessage;
using testing::ErrorName;

const at::Device kCpu(at::kCPU);
using Tensors = std::map<std::string, Tensor>;

// Rounds to what a half can hold, which is what the original stores floats in.
Tensor HalfExact(const Tensor& tensor) {
  return tensor.defined() ? FromTorch(ToTorch(tensor, at::kHalf, kCpu).to(at::kFloat)) : tensor;
}

Tensor Half(const Tensor& tensor, const std::vector<int64_t>& shape) {
  return FromTorch(ToTorch(tensor, at::kHalf, kCpu).reshape(shape));
}

Tensor Filled(std::vector<int64_t> shape, double value) {
  return FromTorch(at::full(shape, value, at::kHalf));
}

// A packed model whose floats the original's format can hold, with the original's clips:
// one per linear.
PackedModel ModelInHalf(const ModelConfig& config) {
  const SourceModel source = SourceModel::Open(WriteTinyModel(config, 3));
  QuantizeOptions options;
  options.method = "flatquant";  // untrained: random matrices of the original's sizes
  options.epochs = 0;
  PackedModel model = Quantize(source, options, RandomWindows(config, 2, 8, 1), nullptr);
  model.transforms.reset();
  const auto factor = [](double logit) { return static_cast<float>(1 / (1 + std::exp(-logit))); };
  for (PackedBlock& block : model.blocks) {
    block.cache.k_clip = {factor(4), factor(3)};
    block.cache.v_clip = {factor(2), factor(5)};
    for (Tensor* tensor :
         {&block.input_norm, &block.post_attention_norm, &block.cache.k_transform}) {
      *tensor = HalfExact(*tensor);
    }
    for (PackedLinear& linear : block.linears) linear.bias = HalfExact(linear.bias);
    for (const Site which : kSites) {
      PackedSite& site = block.site(which);
      site.left = HalfExact(site.left);
      site.right = HalfExact(site.right);
      site.clips.clear();
      for (size_t i = 0; i < LinearsOf(which).size(); ++i) {
        site.clips.push_back({factor(2 + static_cast<double>(i)), factor(3)});
      }
    }
    const at::Tensor key = ToTorch(block.cache.k_transform, at::kDouble, kCpu);
    block.cache.q_transform = FromTorch(at::linalg_inv(key).t().contiguous().to(at::kFloat));
  }
  model.embedding = Half(model.embedding, model.embedding.shape);
  model.final_norm = HalfExact(model.final_norm);
  return model;
}

// The model as the original's --quantized_save writes it.
Tensors OriginalTensors(const PackedModel& model) {
  const ModelConfig& config = model.config;
  Tensors tensors;
  const auto half = [&tensors](const std::string& name, const Tensor& tensor) {
    tensors[name] = Half(tensor, tensor.shape);
  };
  tensors["model.embed_tokens.weight"] = model.embedding;
  half("model.norm.weight", model.final_norm);
  for (int64_t layer = 0; layer < config.layers; ++layer) {
    const PackedBlock& block = model.blocks[static_cast<size_t>(layer)];
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    half(prefix + "input_layernorm.weight", block.input_norm);
    half(prefix + "post_attention_layernorm.weight", block.post_attention_norm);
    for (const Linear which : kLinears) {
      const PackedLinear& linear = block.linear(which);
      const std::string path = LinearPath(layer, which);
      const int64_t rows = ShapeOf(config, which).rows;
      tensors[path + ".linear.weight"] = linear.weight;
      if (linear.bias.defined()) half(path + ".linear.bias", linear.bias);
      const std::string quantizer = "quantizer." + path + ".linear";
      tensors[quantizer + ".scale"] =
          FromTorch(ToTorch(linear.scale, at::kFloat, kCpu).reshape({rows, 1}));
      tensors[quantizer + ".zero"] = FromTorch(at::zeros({rows, 1}));
      tensors[quantizer + ".maxq"] = FromTorch(at::full({}, 7, at::kLong));
      tensors[path + ".clip_factor_w_max"] = Filled({rows, 1}, 4);
      tensors[path + ".clip_factor_w_min"] = Filled({rows, 1}, 4);
    }
    for (const Site site : kSites) {
      double logit = 2;
      for (const Linear which : LinearsOf(site)) {
        const std::string clip = LinearPath(layer, which) + ".act_quantizer.clip_factor_a_";
        tensors[clip + "max"] = Filled({1}, logit++);
        tensors[clip + "min"] = Filled({1}, 3);
      }
    }
    for (const auto& [site, transform] : compress::kKronSites) {
      const std::string name = prefix + std::string(transform);
      half(name + ".matrix_left", block.site(site).left);
      half(name + ".matrix_right", block.site(site).right);
      half(name + ".matrix_left_inv", block.site(site).left);
      half(name + ".matrix_right_inv", block.site(site).right);
      tensors[name + ".diag_scale"] = Filled({SiteWidth(config, site)}, 1);
    }
    const std::string k_clip = prefix + "self_attn.k_cache_quantizer.clip_factor_a_";
    const std::string v_clip = prefix + "self_attn.v_cache_quantizer.clip_factor_a_";
    tensors[k_clip + "max"] = Filled({1}, 4);
    tensors[k_clip + "min"] = Filled({1}, 3);
    tensors[v_clip + "max"] = Filled({1}, 2);
    tensors[v_clip + "min"] = Filled({1}, 5);
    half(prefix + "self_attn.o_trans.matrix", block.site(Site::kAttnOut).left);
    half(prefix + "self_attn.o_trans.matrix_inv_t", block.site(Site::kAttnOut).left);
    half(prefix + "self_attn.kcache_trans.matrix", block.cache.k_transform);
    half(prefix + "self_attn.kcache_trans.matrix_inv_t", block.cache.q_transform);
    half(prefix + "self_attn.vcache_trans.matrix", block.cache.k_transform);
    half(prefix + "self_attn.vcache_trans.matrix_inv_t", block.cache.q_transform);
  }
  return tensors;
}

fs::path WriteCheckpoint(const Tensors& tensors) {
  const fs::path folder = testing::ScratchFolder();
  std::vector<std::pair<std::string, TensorView>> views(tensors.begin(), tensors.end());
  WriteSafetensors(folder / "model.safetensors", views);
  return folder;
}

class ImportOriginalTest : public ::testing::Test {
 protected:
  ImportOriginalTest() : config_(TinyLlama()), model_(ModelInHalf(config_)) {}

  // The error of a checkpoint that a test has damaged.
  std::string Failure(const std::function<void(Tensors*)>& damage,
                      const std::string& scheme = "w4a4kv4") const {
    Tensors tensors = OriginalTensors(model_);
    damage(&tensors);
    const fs::path folder = WriteCheckpoint(tensors);
    return ErrorName([&] { ImportOriginal(folder, config_, Scheme::Parse(scheme)); });
  }

  ModelConfig config_;
  PackedModel model_;
};

TEST_F(ImportOriginalTest, GivesTheModelThatWasWritten) {
  for (const ModelConfig& config : {TinyLlama(), compress::TinyWithBiases()}) {
    const PackedModel model = ModelInHalf(config);
    const PackedModel imported = ImportOriginal(WriteCheckpoint(OriginalTensors(model)),
                                                model.config, Scheme::Parse("w4a4kv4"));
    const fs::path source = WriteTinyModel(config, 3);
    const fs::path folder = testing::ScratchFolder();
    WritePackedModel(model, source, folder / "expected");
    WritePackedModel(imported, source, folder / "imported");
    EXPECT_TRUE(ReadFile(folder / "expected" / "model.safetensors") ==
                ReadFile(folder / "imported" / "model.safetensors"));
  }
}

TEST_F(ImportOriginalTest, RefusesWhatIsNotThisModels) {
  const std::string weight = "model.layers.1.mlp.down_proj.linear.weight";
  const std::string quantizer = "quantizer.model.layers.0.self_attn.q_proj.linear";
  const std::string matrix = "model.layers.0.self_attn.kcache_trans.matrix";
  const struct {
    const char* error;
    std::function<void(Tensors*)> damage;
  } cases[] = {
      {"original.missing_tensor", [&](Tensors* t) { t->erase(weight); }},
      {"original.missing_tensor", [&](Tensors* t) { t->erase(quantizer + ".scale"); }},
      {"original.missing_tensor", [&](Tensors* t) { t->erase("model.norm.weight"); }},
      {"original.unexpected_tensor",
       [&](Tensors* t) { (*t)["model.layers.2.input_layernorm.weight"] = Filled({24}, 1); }},
      {"original.unexpected_tensor",
       [&](Tensors* t) {
         (*t)["model.layers.0.self_attn.q_cache_quantizer.clip_factor_a_max"] = Filled({1}, 4);
       }},
      {"original.wrong_tensor",
       [&](Tensors* t) {
         (*t)[weight] = Filled({24, 22}, 1);
       }},
      {"original.wrong_tensor",
       [&](Tensors* t) {
         (*t)[weight] = FromTorch(at::zeros({24, 44}, at::kByte));
       }},
      {"original.wrong_tensor",
       [&](Tensors* t) {
         (*t)[matrix] = Filled({4, 4}, 1);
       }},
      {"original.wrong_tensor",
       [&](Tensors* t) {
         (*t)[quantizer + ".scale"] = Filled({32, 2}, 1);
       }},  // groups
      {"original.wrong_tensor", [&](Tensors* t) { (*t)[quantizer + ".maxq"] = Filled({}, 7); }},
      {"original.asymmetric",
       [&](Tensors* t) {
         (*t)[quantizer + ".zero"] = Filled({32, 1}, 8);
       }},
      {"original.bits",
       [&](Tensors* t) { (*t)[quantizer + ".maxq"] = FromTorch(at::full({}, 3, at::kLong)); }},
      {"original.bad_value",
       [&](Tensors* t) {
         (*t)[quantizer + ".scale"] = Filled({32, 1}, INFINITY);
       }},
      {"original.bad_value",
       [&](Tensors* t) {
         (*t)[matrix] = Filled({8, 8}, NAN);
       }},
      {"transforms.singular",
       [&](Tensors* t) {
         (*t)[matrix] = Filled({8, 8}, 1);
       }},
  };
  for (const auto& [error, damage] : cases) EXPECT_EQ(Failure(damage), error);
  EXPECT_EQ(Failure([](Tensors*) {}), "");
  EXPECT_EQ(Failure([](Tensors*) {}, "w3a4kv4"), "original.bits");
  EXPECT_EQ(Failure([](Tensors*) {}, "w8a8"), "original.bits");
}

TEST_F(ImportOriginalTest, ComparesTheSchemeWithTheCheckpointsConfig) {
  const fs::path folder = WriteCheckpoint(OriginalTensors(model_));
  const auto failure = [&](const std::string& claims) {
    std::ofstream(folder / "config.json") << R"({"quantization_config": )" << claims << "}";
    return ErrorName([&] { ImportOriginal(folder, config_, Scheme::Parse("w4a4kv4")); });
  };
  EXPECT_EQ(failure(R"({"w_bits": 4, "a_bits": 4, "kv_bits": 4, "kv_is_symmetric": false})"), "");
  EXPECT_EQ(failure(R"({"a_bits": 8})"), "original.bits");
  EXPECT_EQ(failure(R"({"kv_bits": "four"})"), "original.bits");
  EXPECT_EQ(failure(R"({"kv_is_symmetric": true})"), "original.bits");
  EXPECT_EQ(failure("[]"), "");  // says nothing
}

TEST_F(ImportOriginalTest, CodesOutsideTheirRangeAreNotWritten) {
  Tensors tensors = OriginalTensors(model_);
  for (auto& [name, tensor] : tensors) {
    if (name.ends_with(".maxq")) tensor = FromTorch(at::full({}, 3, at::kLong));
  }
  const PackedModel imported =
      ImportOriginal(WriteCheckpoint(tensors), config_, Scheme::Parse("w3a4kv4"));
  EXPECT_NE(ErrorName([&] {
              WritePackedModel(imported, WriteTinyModel(config_, 3),
                               testing::ScratchFolder() / "packed");
            }),
            "");
}

}  // namespace
}  // namespace flatquant
