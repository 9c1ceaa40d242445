#include "flatquant/compress/import_pth.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant::compress {
namespace {

using testing::ErrorMessage;
using testing::ErrorName;

const at::Device kCpu(at::kCPU);

struct Values {
  std::vector<int32_t> shape;
  std::vector<float> cells;
};

// What a file says about one layer.
using Layer = std::map<std::string, Values>;

Values FromMatrix(const at::Tensor& matrix) {
  const at::Tensor cells = matrix.to(at::kFloat).contiguous();
  Values values;
  for (const int64_t size : matrix.sizes()) values.shape.push_back(static_cast<int32_t>(size));
  values.cells.assign(cells.data_ptr<float>(), cells.data_ptr<float>() + cells.numel());
  return values;
}

Values Logits(int32_t rows, bool column) {
  Values values{column ? std::vector<int32_t>{rows, 1} : std::vector<int32_t>{rows}, {}};
  values.cells.assign(static_cast<size_t>(rows), 2.0f);
  return values;
}

// A complete layer, as the original writes it.
Layer CompleteLayer(const ModelConfig& config, Rng& rng) {
  Layer layer;
  const auto add_pair = [&](const std::string& matrix, const std::string& inverse, int64_t n) {
    const at::Tensor p = RandomOrthogonal(n, rng) * 1.5 + 0.1 * at::eye(n, at::kDouble);
    layer[matrix] = FromMatrix(p);
    layer[inverse] = FromMatrix(at::linalg_inv(p).t());
  };
  for (const auto& [name, width] :
       {std::pair{"self_attn.ln_trans", config.hidden},
        std::pair{"mlp.up_gate_trans", config.hidden}, std::pair{"mlp.down_trans", config.ffn}}) {
    const std::string prefix = name;
    const KronShape shape = KronFactors(width);
    add_pair(prefix + ".matrix_left", prefix + ".matrix_left_inv", shape.left);
    add_pair(prefix + ".matrix_right", prefix + ".matrix_right_inv", shape.right);
    layer[prefix + ".diag_scale"] = Logits(static_cast<int32_t>(width), false);
  }
  for (const auto& [name, n] : {std::pair{"o", config.heads}, std::pair{"kcache", config.head_dim},
                                std::pair{"vcache", config.head_dim}}) {
    const std::string prefix = std::string("self_attn.") + name + "_trans";
    add_pair(prefix + ".matrix", prefix + ".matrix_inv_t", n);
  }
  for (const Linear which : kLinears) {
    const std::string module = LinearPath(0, which).substr(std::string("model.layers.0.").size());
    for (const char* side : {"max", "min"}) {
      layer[module + ".clip_factor_w_" + side] =
          Logits(static_cast<int32_t>(ShapeOf(config, which).rows), true);
      layer[module + ".act_quantizer.clip_factor_a_" + side] = Logits(1, false);
    }
  }
  for (const char* cache : {"k", "v"}) {
    for (const char* side : {"max", "min"}) {
      layer[std::string("self_attn.") + cache + "_cache_quantizer.clip_factor_a_" + side] =
          Logits(1, false);
    }
  }
  return layer;
}

std::string FloatBytes(const std::vector<float>& cells) {
  return {reinterpret_cast<const char*>(cells.data()), cells.size() * sizeof(float)};
}

// {0: {name: tensor, ...}, 1: ...} as torch.save writes it.
std::filesystem::path WritePth(const std::vector<Layer>& layers) {
  testing::PickleText pickle;
  std::vector<std::string> storages;
  pickle.Raw("}(");
  for (size_t i = 0; i < layers.size(); ++i) {
    pickle.Int(static_cast<int32_t>(i)).Raw("}(");
    for (const auto& [name, values] : layers[i]) {
      std::vector<int32_t> strides(values.shape.size(), 1);
      for (size_t d = values.shape.size(); d-- > 1;) strides[d - 1] = strides[d] * values.shape[d];
      pickle.Text(name).Tensor("FloatStorage", std::to_string(storages.size()),
                               static_cast<int32_t>(values.cells.size()), 0, values.shape, strides);
      storages.push_back(FloatBytes(values.cells));
    }
    pickle.Raw("u");
  }
  pickle.Raw("u.");
  const std::filesystem::path path = testing::ScratchFolder() / "flat_matrices.pth";
  testing::WriteBytes(path, testing::PthZip(pickle.text, storages).Bytes());
  return path;
}

class ImportTest : public ::testing::Test {
 protected:
  ImportTest() : config_(TinyLlama()), rng_(3) {
    for (int64_t i = 0; i < config_.layers; ++i) layers_.push_back(CompleteLayer(config_, rng_));
  }

  std::string ErrorAfter(const std::function<void()>& change) {
    change();
    return ErrorName([&] { LearnedParameters::Open(WritePth(layers_), config_, kCpu); });
  }

  ModelConfig config_;
  Rng rng_;
  std::vector<Layer> layers_;
};

TEST_F(ImportTest, ReadsEveryPart) {
  const LearnedParameters learned = LearnedParameters::Open(WritePth(layers_), config_, kCpu);
  const BlockParameters& block = learned.Block(1);
  const at::Tensor left = block.site(Site::kMlpOut).left.Evaluate(at::kFloat).matrix;
  const Values expected = layers_[1].at("mlp.down_trans.matrix_left");
  EXPECT_EQ(std::vector<float>(left.data_ptr<float>(), left.data_ptr<float>() + left.numel()),
            expected.cells);
  EXPECT_EQ(block.site(Site::kAttnIn).act_clips.size(), 3u);
  EXPECT_EQ(block.weight_clips[static_cast<size_t>(Linear::kUp)].max.size(0), config_.ffn);
  EXPECT_TRUE(block.v_clip.min.defined());
  EXPECT_TRUE(block.TransformTensors().empty());  // nothing to train
}

TEST_F(ImportTest, FoldsToAnEquivalentBlock) {
  const SourceModel model = SourceModel::Open(WriteTinyModel(config_, 4));
  const LearnedParameters learned = LearnedParameters::Open(WritePth(layers_), config_, kCpu);
  const BlockWeights weights = LoadBlockWeights(model, 0, kCpu);
  const BlockTensors folded = Fold(config_, weights, learned.Block(0), at::kDouble);
  EXPECT_LE(SelfTestError(config_, weights, folded, RandomBlockInput(9, config_.hidden, 1, kCpu)),
            1e-5);
}

TEST_F(ImportTest, PartsThatNoLayerHasAreLeftOut) {
  for (Layer& layer : layers_) {
    std::erase_if(layer, [](const auto& entry) {
      return entry.first.find("kcache") != std::string::npos ||
             entry.first.find("diag_scale") != std::string::npos ||
             entry.first.find("clip_factor_w") != std::string::npos;
    });
  }
  const auto parameters = LearnedParameters::Open(WritePth(layers_), config_, kCpu);
  const BlockParameters& block = parameters.Block(0);
  EXPECT_TRUE(block.key.is_identity());
  EXPECT_FALSE(block.site(Site::kAttnIn).diagonal.defined());
  EXPECT_FALSE(block.weight_clips[0].max.defined());
}

TEST_F(ImportTest, NamesAMissingTensor) {
  layers_[1].erase("mlp.down_trans.matrix_right");
  const std::string message =
      ErrorMessage([&] { LearnedParameters::Open(WritePth(layers_), config_, kCpu); });
  EXPECT_NE(message.find("[transforms.missing]"), std::string::npos) << message;
  EXPECT_NE(message.find("1.mlp.down_trans.matrix_right"), std::string::npos) << message;
}

TEST_F(ImportTest, NamesAWrongShape) {
  EXPECT_EQ(ErrorAfter([&] { layers_[0]["self_attn.ln_trans.diag_scale"] = Logits(7, false); }),
            "transforms.wrong_shape");
}

TEST_F(ImportTest, NamesLayersThatDoNotMatch) {
  EXPECT_EQ(ErrorAfter([&] { layers_.pop_back(); }), "transforms.layers");
  EXPECT_EQ(ErrorAfter([&] { layers_.resize(3, layers_[0]); }), "transforms.layers");
}

TEST_F(ImportTest, NamesNan) {
  EXPECT_EQ(ErrorAfter([&] {
              layers_[0]["self_attn.v_cache_quantizer.clip_factor_a_max"].cells[0] =
                  std::numeric_limits<float>::quiet_NaN();
            }),
            "transforms.not_finite");
}

TEST_F(ImportTest, NamesASingularMatrix) {
  EXPECT_EQ(ErrorAfter([&] {
              for (Layer& layer : layers_) layer.erase("self_attn.o_trans.matrix_inv_t");
              for (float& cell : layers_[0]["self_attn.o_trans.matrix"].cells) cell = 0;
            }),
            "transforms.singular");
  layers_[0] = CompleteLayer(config_, rng_);
  EXPECT_EQ(ErrorAfter([&] { layers_[0]["mlp.down_trans.diag_scale"].cells[3] = 0; }),
            "transforms.singular");
}

TEST_F(ImportTest, NamesAnInverseOfAnotherConvention) {
  EXPECT_EQ(ErrorAfter([&] {
              std::swap(layers_[0]["self_attn.kcache_trans.matrix_inv_t"],
                        layers_[0]["self_attn.kcache_trans.matrix"]);
              layers_[0]["self_attn.kcache_trans.matrix"] =
                  layers_[0]["self_attn.vcache_trans.matrix"];
            }),
            "transforms.bad_inverse");
}

// The real file of the original implementation.
TEST(ImportGolden, WikillamasMatricesFoldToTheOriginalNetwork) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/flat_matrices.pth");
  FLATQUANT_NEEDS_SHARED("models/wikillama-43m");
  const SourceModel model = SourceModel::Open(testing::SharedPath("models/wikillama-43m"));
  const ModelConfig& config = model.config();
  const LearnedParameters learned = LearnedParameters::Open(
      testing::SharedPath("golden/wikillama-43m/flat_matrices.pth"), config, kCpu);
  for (const int64_t layer : {int64_t{0}, config.layers - 1}) {
    const BlockWeights weights = LoadBlockWeights(model, layer, kCpu);
    const BlockTensors folded = Fold(config, weights, learned.Block(layer), at::kDouble);
    const at::Tensor x = RandomBlockInput(16, config.hidden, 1, kCpu);
    EXPECT_LE(SelfTestError(config, weights, folded, x), 1e-5) << "layer " << layer;
  }
}

}  // namespace
}  // namespace flatquant::compress
