#include "flatquant/compress/quantize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/crafted_files_for_test.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/run_plan.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using compress::RandomWindows;
using compress::TinyLlama;
using compress::WriteTinyModel;
using ::testing::AllOf;
using testing::ErrorMessage;
using testing::ErrorName;
using ::testing::HasSubstr;

std::string FileBytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), std::istreambuf_iterator<char>()};
}

QuantizeOptions ShortCalibration() {
  QuantizeOptions options;
  options.epochs = 2;
  options.batch = 2;
  options.threads = 1;
  return options;
}

bool SameBytes(const Tensor& a, const Tensor& b) {
  return a.bytes() == b.bytes() && std::memcmp(a.data, b.data, a.bytes()) == 0;
}

class QuantizeTest : public ::testing::Test {
 protected:
  QuantizeTest()
      : source_(WriteTinyModel(TinyLlama(), 1)),
        model_(SourceModel::Open(source_)),
        windows_(RandomWindows(model_.config(), 4, 16, 2)) {}

  fs::path source_;
  SourceModel model_;
  TokenWindows windows_;
};

TEST_F(QuantizeTest, SameSeedWritesTheSameBytes) {
  using Weights = QuantizeOptions::Weights;
  for (const Weights weights : {Weights::kRtn, Weights::kGptq, Weights::kLearned}) {
    QuantizeOptions options = ShortCalibration();
    options.weights = weights;
    if (weights == Weights::kLearned) options.stream = QuantizeOptions::Stream::kQuantized;
    fs::path outputs[2];
    for (fs::path& output : outputs) {
      output = testing::ScratchFolder() / "packed";
      WritePackedModel(Quantize(model_, options, windows_, nullptr), source_, output);
    }
    int compared = 0;
    for (const auto& entry : fs::directory_iterator(outputs[0])) {
      const fs::path name = entry.path().filename();
      EXPECT_EQ(FileBytes(entry.path()), FileBytes(outputs[1] / name)) << name;
      ++compared;
    }
    EXPECT_GE(compared, 2);
  }
}

TEST_F(QuantizeTest, ChoosesOtherCodesForOtherWeights) {
  using Weights = QuantizeOptions::Weights;
  for (const char* method : {"rtn", "flatquant"}) {
    std::vector<PackedModel> models;
    for (const Weights weights : {Weights::kRtn, Weights::kGptq, Weights::kLearned}) {
      QuantizeOptions options = ShortCalibration();
      options.method = method;
      options.weights = weights;
      QuantizeReport report;
      models.push_back(Quantize(model_, options, windows_, &report));
      EXPECT_LE(report.self_test_error, compress::kSelfTestBound);
    }
    const auto weight = [&](size_t i) -> const Tensor& {
      return models[i].blocks[1].linear(Linear::kDown).weight;
    };
    EXPECT_FALSE(SameBytes(weight(0), weight(1))) << method;
    EXPECT_FALSE(SameBytes(weight(0), weight(2))) << method;
    EXPECT_EQ(models[0].provenance.at("weights"), "rtn");
    EXPECT_EQ(models[1].provenance.at("weights"), "gptq");
    EXPECT_EQ(models[2].provenance.at("weights"), "learned");
    // GPTQ chooses codes on the grid that round to nearest has, too.
    EXPECT_TRUE(SameBytes(models[0].blocks[1].linear(Linear::kDown).scale,
                          models[1].blocks[1].linear(Linear::kDown).scale));
  }
}

TEST_F(QuantizeTest, OneStartIsTheDefault) {
  QuantizeOptions options = ShortCalibration();
  const fs::path without = testing::ScratchFolder() / "packed";
  WritePackedModel(Quantize(model_, options, windows_, nullptr), source_, without);
  for (const int restarts : {1, 4}) {
    options.restarts = restarts;
    const fs::path output = testing::ScratchFolder() / "packed";
    WritePackedModel(Quantize(model_, options, windows_, nullptr), source_, output);
    bool same = true;
    for (const auto& entry : fs::directory_iterator(without)) {
      same &= FileBytes(entry.path()) == FileBytes(output / entry.path().filename());
    }
    EXPECT_EQ(same, restarts == 1);
  }
}

TEST_F(QuantizeTest, AnotherSeedGivesOtherTransforms) {
  QuantizeOptions options = ShortCalibration();
  const PackedModel first = Quantize(model_, options, windows_, nullptr);
  options.seed = 1;
  const PackedModel second = Quantize(model_, options, windows_, nullptr);
  EXPECT_FALSE(SameBytes(first.blocks[0].site(Site::kAttnIn).left,
                         second.blocks[0].site(Site::kAttnIn).left));
}

TEST_F(QuantizeTest, ReportsBlocksAndSelfTest) {
  QuantizeReport report;
  const PackedModel packed = Quantize(model_, ShortCalibration(), windows_, &report);
  ASSERT_EQ(report.blocks.size(), 2u);
  for (const BlockReport& block : report.blocks) {
    EXPECT_GT(block.loss_before, 0);
    EXPECT_LT(block.loss_after, block.loss_before);
  }
  EXPECT_GT(report.self_test_error, 0);
  EXPECT_LE(report.self_test_error, compress::kSelfTestBound);
  EXPECT_EQ(packed.provenance.at("method"), "flatquant");
  EXPECT_EQ(packed.provenance.at("data"), windows_.Fingerprint());
}

TEST_F(QuantizeTest, WrittenModelReadsBack) {
  for (const char* scheme : {"w4a4kv4", "w3a8kv2", "w8a8", "w4a16", "w16a16kv2"}) {
    QuantizeOptions options = ShortCalibration();
    options.epochs = 1;
    options.scheme = Scheme::Parse(scheme);
    const fs::path output = testing::ScratchFolder() / "packed";
    WritePackedModel(Quantize(model_, options, windows_, nullptr), source_, output);
    EXPECT_EQ(ReadPackedModel(output).scheme, options.scheme) << scheme;
  }
}

TEST_F(QuantizeTest, SmoothQuantFoldsDiagonalsAndTransformsNothing) {
  QuantizeOptions options = ShortCalibration();
  options.method = "smoothquant";
  QuantizeReport report;
  const PackedModel packed = Quantize(model_, options, windows_, &report);
  EXPECT_FALSE(packed.blocks[0].site(Site::kMlpOut).has_transform());
  options.method = "rtn";
  const PackedModel plain = Quantize(model_, options, windows_, nullptr);
  EXPECT_FALSE(SameBytes(packed.blocks[0].input_norm, plain.blocks[0].input_norm));
  EXPECT_LE(report.self_test_error, compress::kSelfTestBound);
}

TEST_F(QuantizeTest, QuaRotRotatesEverySiteWithoutData) {
  QuantizeOptions options;
  options.method = "quarot";
  QuantizeReport report;
  const PackedModel packed = Quantize(model_, options, &report);
  for (const Site site : kSites) EXPECT_TRUE(packed.blocks[1].site(site).has_transform());
  EXPECT_TRUE(packed.blocks[1].cache.k_transform.defined());
  EXPECT_LE(report.self_test_error, compress::kSelfTestBound);
  options.seed = 1;
  const PackedModel other = Quantize(model_, options, nullptr);
  EXPECT_FALSE(SameBytes(packed.blocks[0].site(Site::kAttnIn).left,
                         other.blocks[0].site(Site::kAttnIn).left));
}

TEST_F(QuantizeTest, RtnNeedsNoData) {
  QuantizeOptions options;
  options.method = "rtn";
  const PackedModel packed = Quantize(model_, options, nullptr);
  EXPECT_FALSE(packed.blocks[0].site(Site::kAttnIn).has_transform());
  EXPECT_FALSE(packed.blocks[0].cache.k_transform.defined());
  EXPECT_EQ(packed.blocks[0].site(Site::kMlpOut).clips[0].max, 1.0f);
  EXPECT_FALSE(packed.lm_head.defined());
}

TEST_F(QuantizeTest, QuantizesOnlyTheFirstBlocksWhenAsked) {
  QuantizeOptions options;
  options.method = "rtn";
  options.blocks = 1;
  const PackedModel packed = Quantize(model_, options, nullptr);
  ASSERT_EQ(packed.blocks.size(), 2u);
  EXPECT_EQ(packed.blocks[0].linear(Linear::kQ).bits, 4);
  EXPECT_EQ(packed.blocks[1].linear(Linear::kQ).bits, 16);
  EXPECT_TRUE(SameBytes(packed.blocks[1].linear(Linear::kQ).weight, model_.Weight(1, Linear::kQ)));
}

TEST_F(QuantizeTest, NamesWhatIsWrongWithTheOptions) {
  const auto quantize = [&](auto&& change) {
    return ErrorName([&] {
      QuantizeOptions options = ShortCalibration();
      change(&options);
      Quantize(model_, options, windows_, nullptr);
    });
  };
  using O = QuantizeOptions*;
  EXPECT_EQ(quantize([](O o) { o->method = "magic"; }), "quantize.unknown_method");
  EXPECT_EQ(quantize([](O o) { o->batch = 0; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) { o->epochs = -1; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) { o->lr = 0; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) { o->weight_lr = 0; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) { o->restarts = 0; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) { o->restarts = 17; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) { o->device = "abacus"; }), "quantize.bad_device");
  EXPECT_EQ(quantize([](O o) { o->amp = QuantizeOptions::Amp::kF16; }), "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) {
              o->start = QuantizeOptions::Start::kCayley;
              o->parametrization = QuantizeOptions::Parametrization::kDirectInverse;
            }),
            "quantize.bad_option");
  EXPECT_EQ(quantize([](O o) {
              o->method = "rtn";
              o->transforms = "some.pth";
            }),
            "quantize.bad_option");
  EXPECT_EQ(ErrorName([&] { Quantize(model_, ShortCalibration(), nullptr); }),
            "quantize.needs_calibration");
}

TEST_F(QuantizeTest, RefusesRestartsWithoutRandomStarts) {
  const auto quantize = [&](auto&& change) {
    return ErrorMessage([&] {
      QuantizeOptions options = ShortCalibration();
      options.restarts = 2;
      change(&options);
      Quantize(model_, options, windows_, nullptr);
    });
  };
  for (const char* method : {"rtn", "smoothquant", "quarot", "flattenquant"}) {
    EXPECT_THAT(quantize([&](QuantizeOptions* o) {
                  o->method = method;
                  o->weights = QuantizeOptions::Weights::kGptq;
                }),
                AllOf(HasSubstr("--restarts 2"), HasSubstr(method)));
  }
  for (const char* file : {"some.pth", "transforms.safetensors"}) {
    EXPECT_THAT(quantize([&](QuantizeOptions* o) { o->transforms = file; }),
                AllOf(HasSubstr("--restarts 2"), HasSubstr("have no random starts")));
  }
  EXPECT_EQ(quantize([](QuantizeOptions*) {}), "");
}

// GPTQ and learned weights need text with every method.
TEST_F(QuantizeTest, NamesWeightsWithoutCalibration) {
  for (const auto weights : {QuantizeOptions::Weights::kGptq, QuantizeOptions::Weights::kLearned}) {
    QuantizeOptions options;
    options.method = "rtn";
    options.weights = weights;
    EXPECT_EQ(ErrorName([&] { Quantize(model_, options, nullptr); }), "quantize.needs_calibration");
  }
}

TEST(Presets, AreNamedSetsOfOptions) {
  EXPECT_THAT(PresetNames(), ::testing::ElementsAre("paper", "fast", "best"));
  QuantizeOptions options;
  ApplyPreset("fast", &options);
  EXPECT_EQ(options.weights, QuantizeOptions::Weights::kLearned);
  ApplyPreset("paper", &options);
  EXPECT_EQ(options.weights, QuantizeOptions::Weights::kRtn);
  EXPECT_EQ(options.epochs, QuantizeOptions().epochs);
  EXPECT_EQ(options.lr, QuantizeOptions().lr);
  EXPECT_EQ(ErrorName([&] { ApplyPreset("magic", &options); }), "quantize.unknown_preset");
}

TEST(AutomaticPrecision, OnAGpuIsTheOriginalsWhereWeightsAreNotLearned) {
  const at::Device gpu(at::kCUDA);
  ModelConfig config = TinyLlama();
  QuantizeOptions options;
  EXPECT_EQ(compress::AmpOf(options, config, gpu), compress::Amp::kF16);
  options.weights = QuantizeOptions::Weights::kLearned;
  EXPECT_EQ(compress::AmpOf(options, config, gpu), compress::Amp::kBF16);
  options.amp = QuantizeOptions::Amp::kF16;
  EXPECT_EQ(compress::AmpOf(options, config, gpu), compress::Amp::kF16);
  EXPECT_EQ(ErrorName([&] { compress::AmpOf(options, config, at::Device(at::kCPU)); }),
            "quantize.bad_option");
  options = {};
  config.architecture = Architecture::kQwen2;
  EXPECT_EQ(compress::AmpOf(options, config, gpu), compress::Amp::kBF16);
}

TEST(MethodNames, AreTheRegistrys) {
  EXPECT_THAT(MethodNames(),
              ::testing::ElementsAre("rtn", "smoothquant", "quarot", "flattenquant", "flatquant"));
}

}  // namespace
}  // namespace flatquant
