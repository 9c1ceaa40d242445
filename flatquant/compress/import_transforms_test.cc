#include "flatquant/compress/import_transforms.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/file.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/compress/tiny_model_for_test.h"
#include "flatquant/packed/transforms_file.h"

namespace flatquant::compress {
namespace {

namespace fs = std::filesystem;
using testing::ErrorName;
using Weights = QuantizeOptions::Weights;

const at::Device kCpu(at::kCPU);
constexpr float kInfinity = std::numeric_limits<float>::infinity();

std::string WeightBytes(const fs::path& packed) { return ReadFile(packed / "model.safetensors"); }

// Quantizes a network of random weights in different ways.
class Requantization {
 public:
  explicit Requantization(const ModelConfig& config)
      : source_(WriteTinyModel(config, 5)),
        model_(SourceModel::Open(source_)),
        windows_(RandomWindows(model_.config(), 4, 16, 6)) {}

  // from: a packed model whose transforms are taken.
  fs::path Quantize(const std::string& method, Weights weights, const fs::path& from = {}) const {
    QuantizeOptions options;
    options.method = method;
    options.weights = weights;
    options.epochs = 1;
    options.batch = 2;
    options.threads = 1;
    if (!from.empty()) options.transforms = TransformsFile(from);
    const fs::path out = testing::ScratchFolder() / "packed";
    WritePackedModel(flatquant::Quantize(model_, options, windows_, nullptr), source_, out);
    return out;
  }

 private:
  fs::path source_;
  SourceModel model_;
  TokenWindows windows_;
};

TEST(Transforms, GiveTheSameBytesAgainAndServeOtherWeights) {
  for (const ModelConfig& config : {TinyLlama(), TinyQwen2(), TinyQwen3()}) {
    const Requantization run(config);
    for (const std::string method : {"rtn", "smoothquant", "quarot", "flatquant"}) {
      SCOPED_TRACE(method);
      const fs::path rtn = run.Quantize(method, Weights::kRtn);
      const fs::path again = run.Quantize(method, Weights::kRtn, rtn);
      EXPECT_TRUE(WeightBytes(rtn) == WeightBytes(again));
      EXPECT_TRUE(ReadFile(TransformsFile(rtn)) == ReadFile(TransformsFile(again)));
      const fs::path gptq = run.Quantize(method, Weights::kGptq, rtn);
      EXPECT_TRUE(WeightBytes(gptq) == WeightBytes(run.Quantize(method, Weights::kGptq)));
      EXPECT_FALSE(WeightBytes(gptq) == WeightBytes(rtn));
    }
  }
}

TEST(Transforms, KeepClipsPerLinearAndBlocksThatStay) {
  const fs::path source = WriteTinyModel(TinyLlama(), 5);
  const SourceModel model = SourceModel::Open(source);
  const TokenWindows windows = RandomWindows(model.config(), 4, 16, 6);
  QuantizeOptions options;
  options.epochs = 1;
  options.threads = 1;
  options.per_linear_clips = true;
  options.blocks = 1;
  const PackedModel first = Quantize(model, options, windows, nullptr);
  const fs::path file = testing::ScratchFolder() / "t.safetensors";
  WriteTransforms(file, model.config().layers, *first.transforms);
  options.transforms = file;
  const PackedModel second = Quantize(model, options, windows, nullptr);
  const fs::path folder = testing::ScratchFolder();
  WritePackedModel(first, source, folder / "first");
  WritePackedModel(second, source, folder / "second");
  EXPECT_TRUE(WeightBytes(folder / "first") == WeightBytes(folder / "second"));
  EXPECT_EQ(second.blocks[0].site(Site::kAttnIn).clips.size(), 3u);
}

class TransformsFileTest : public ::testing::Test {
 protected:
  using Tensors = std::map<std::string, Tensor>;

  static Tensor Of(std::vector<int64_t> shape, float value) {
    return FromTorch(at::full(shape, value, at::kFloat));
  }

  // A file for TinyLlama, as a test wants it.
  static fs::path Write(const Tensors& tensors,
                        std::map<std::string, std::string> metadata = {
                            {"format", kTransformsFormat}, {"version", "1"}, {"layers", "2"}}) {
    const fs::path file = testing::ScratchFolder() / "t.safetensors";
    std::vector<std::pair<std::string, TensorView>> views(tensors.begin(), tensors.end());
    WriteSafetensors(file, views, metadata);
    return file;
  }

  static std::string Failure(const Tensors& tensors) {
    return ErrorName([&] { ReadTransforms(Write(tensors), TinyLlama(), kCpu); });
  }
};

TEST_F(TransformsFileTest, RefusesOtherFiles) {
  const auto failure = [](const std::map<std::string, std::string>& metadata) {
    return ErrorName([&] { ReadTransforms(Write({}, metadata), TinyLlama(), kCpu); });
  };
  EXPECT_EQ(failure({}), "transforms.bad_format");
  EXPECT_EQ(failure({{"format", "pt"}}), "transforms.bad_format");
  EXPECT_EQ(failure({{"format", kTransformsFormat}, {"version", "2"}, {"layers", "2"}}),
            "transforms.newer_version");
  EXPECT_EQ(failure({{"format", kTransformsFormat}, {"version", "1"}, {"layers", "3"}}),
            "transforms.layers");
  EXPECT_EQ(failure({{"format", kTransformsFormat}, {"version", "1"}, {"layers", "2"}}), "");
  EXPECT_EQ(ErrorName([] { ReadTransforms("/no/such.safetensors", TinyLlama(), kCpu); }),
            "file.open");
}

TEST_F(TransformsFileTest, RefusesWhatTheModelHasNoPlaceFor) {
  const std::string site = "model.layers.0.attn_in";
  const Tensor identity = FromTorch(at::eye(4, at::kFloat));
  EXPECT_EQ(Failure({{"model.layers.2.attn_in.diagonal", Of({24}, 1)}}), "transforms.unexpected");
  EXPECT_EQ(Failure({{"model.layers.0.attn_out.diagonal", Of({32}, 1)}}), "transforms.unexpected");
  EXPECT_EQ(Failure({{site + ".diagonal", Of({23}, 1)}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{site + ".diagonal", FromTorch(at::ones({24}, at::kHalf))}}),
            "transforms.wrong_shape");
  EXPECT_EQ(Failure({{site + ".diagonal", Of({24}, 0)}}), "transforms.singular");
  EXPECT_EQ(Failure({{site + ".diagonal", Of({24}, NAN)}}), "transforms.not_finite");
  EXPECT_EQ(Failure({{site + ".transform_left", Of({4, 6}, 1)}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{site + ".transform_left", Of({5, 5}, 1)}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{site + ".transform_left", Of({0, 0}, 1)}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{site + ".transform_left", Of({4, 4}, 1)}}), "transforms.singular");
  EXPECT_EQ(Failure({{site + ".transform_left", Of({4, 4}, kInfinity)}}), "transforms.not_finite");
  EXPECT_EQ(Failure({{site + ".transform_left", identity}, {site + ".transform_right", identity}}),
            "transforms.wrong_shape");  // 4 x 4 for a width of 24
  EXPECT_EQ(Failure({{site + ".transform_left", identity}}), "");
  EXPECT_EQ(Failure({{site + ".act_clip_logits", Of({2, 2}, 1)}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{site + ".act_clip_logits", Of({3, 2}, kInfinity)}}), "");
  EXPECT_EQ(Failure({{site + ".act_clip_logits", Of({1, 2}, -kInfinity)}}),
            "transforms.not_finite");
  const std::string cache = "model.layers.1.kv_cache";
  EXPECT_EQ(Failure({{cache + ".k_transform", identity}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{cache + ".v_clip_logits", Of({1, 2}, 1)}}), "transforms.wrong_shape");
  EXPECT_EQ(Failure({{"model.layers.1.mlp.up_proj.weight_clip_logits", Of({24, 2}, 1)}}),
            "transforms.wrong_shape");
}

}  // namespace
}  // namespace flatquant::compress
