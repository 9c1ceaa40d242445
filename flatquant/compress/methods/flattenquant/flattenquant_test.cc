#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/equivalence.h"
#include "flatquant/compress/fold.h"
#include "flatquant/compress/methods/flattenquant/divergence.h"
#include "flatquant/compress/methods/method.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/tiny_model_for_test.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/linear_compute.h"

namespace flatquant::compress {
namespace {

QuantizeOptions OptionsFor(const char* scheme, double kl) {
  QuantizeOptions options;
  options.method = "flattenquant";
  options.scheme = Scheme::Parse(scheme);
  options.flatten_kl = kl;
  options.batch = 2;
  options.threads = 1;
  return options;
}

constexpr double kAny = std::numeric_limits<double>::infinity();

class FlattenQuantTest : public ::testing::TestWithParam<ModelConfig (*)()> {
 protected:
  FlattenQuantTest()
      : model_(SourceModel::Open(WriteTinyModel(GetParam()(), 1))),
        windows_(RandomWindows(model_.config(), 4, 16, 2)) {}

  SourceModel model_;
  TokenWindows windows_;
};

// Every architecture: folded and flattened the network stays what it is, and the
// packed model is one that the format holds.
TEST_P(FlattenQuantTest, QuantizesEveryNetwork) {
  using Weights = QuantizeOptions::Weights;
  for (const Weights weights : {Weights::kRtn, Weights::kGptq}) {
    QuantizeOptions options = OptionsFor("w4a4kv4", kAny);
    options.weights = weights;
    QuantizeReport report;
    const PackedModel packed = Quantize(model_, options, windows_, &report);
    EXPECT_GT(report.self_test_error, 0);
    EXPECT_LE(report.self_test_error, kSelfTestBound);
    CheckPackedModel(packed, "test");
    CheckCodes(packed, "test");
    const LinearCompute compute = ComputeOf(packed);
    EXPECT_EQ(compute.int4_share(), 1);
    EXPECT_GT(compute.growth(), 1);
    for (const PackedBlock& block : packed.blocks) {
      for (const Site site : kSites) EXPECT_TRUE(block.site(site).is_flattened());
      // One step for the whole weight.
      const std::vector<float> scale = block.linear(Linear::kUp).scale.ToFloat();
      EXPECT_EQ(std::count(scale.begin(), scale.end(), scale[0]),
                static_cast<std::ptrdiff_t>(scale.size()));
      EXPECT_EQ(block.cache.k_bits, 4);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Networks, FlattenQuantTest,
                         ::testing::Values(TinyLlama, TinyQwen2, TinyQwen3, TinyWithBiases));

class FlattenQuantChoiceTest : public ::testing::Test {
 protected:
  FlattenQuantChoiceTest()
      : model_(SourceModel::Open(WriteTinyModel(TinyLlama(), 1))),
        windows_(RandomWindows(model_.config(), 4, 16, 2)),
        weights_(LoadBlockWeights(model_, 0, cpu_)),
        stream_(model_, windows_, cpu_) {
    stream_.RunBlock(weights_, 2);
  }

  BlockParameters Choose(const QuantizeOptions& options) {
    const BlockTask task{model_.config(), options, 0, weights_, &stream_, Amp::kOff, cpu_, [] {}};
    BlockReport report;
    return MakeMethod("flattenquant")->Choose(task, &report);
  }

  double Divergence(const QuantizeOptions& options, const BlockParameters& chosen, Site site) {
    const BlockTask task{model_.config(), options, 0, weights_, &stream_, Amp::kOff, cpu_, [] {}};
    return SiteDivergence(task, chosen, site, chosen.site(site).flattening);
  }

  const at::Device cpu_{at::kCPU};
  SourceModel model_;
  TokenWindows windows_;
  BlockWeights weights_;
  ResidualStream stream_;
};

TEST_F(FlattenQuantChoiceTest, WidthsFollowTheDivergence) {
  const QuantizeOptions all_narrow = OptionsFor("w4a4", kAny);
  const QuantizeOptions all_wide = OptionsFor("w4a4", 0);
  const BlockParameters narrow = Choose(all_narrow), wide = Choose(all_wide);
  std::vector<double> divergences;
  for (const Site site : kSites) {
    EXPECT_EQ(narrow.site(site).flattening.bits, 4);
    EXPECT_EQ(wide.site(site).flattening.bits, 8);
    divergences.push_back(Divergence(all_narrow, narrow, site));
    EXPECT_GT(divergences.back(), 0);
    EXPECT_LT(Divergence(all_wide, wide, site), 0.1 * divergences.back());
  }
  // A bound between two sites' divergences parts them.
  std::vector<double> sorted = divergences;
  std::sort(sorted.begin(), sorted.end());
  const double bound = std::sqrt(sorted[1] * sorted[2]);
  const BlockParameters mixed = Choose(OptionsFor("w4a4", bound));
  for (const Site site : kSites) {
    const bool fits = divergences[static_cast<size_t>(site)] <= bound;
    EXPECT_EQ(mixed.site(site).flattening.bits, fits ? 4 : 8) << SiteName(site);
  }
}

// A block in its pieces computes what the original does, for inputs that the
// calibration never saw too.
TEST_F(FlattenQuantChoiceTest, FlatteningChangesNothing) {
  for (const double kl : {0.0, kAny}) {
    const BlockParameters chosen = Choose(OptionsFor("w4a4", kl));
    at::NoGradGuard no_grad;
    const BlockTensors folded = Fold(model_.config(), weights_, chosen, at::kDouble);
    EXPECT_GT(folded.weights[0].size(1), model_.config().hidden);
    const at::Tensor x = 5 * RandomBlockInput(20, model_.config().hidden, 3, cpu_);
    EXPECT_LT(SelfTestError(model_.config(), weights_, folded, x), kSelfTestBound);
  }
}

// With a scale per row no weight is cut, rows have steps of their own, of four and of eight
// bits, and the network stays what it is.
TEST_F(FlattenQuantChoiceTest, RowsMayKeepTheirScales) {
  QuantizeOptions options = OptionsFor("w4a4", kAny);
  double divergence[2];
  for (const bool rows : {false, true}) {
    options.flatten_rows = rows;
    divergence[rows] = Divergence(options, Choose(options), Site::kMlpIn);
  }
  EXPECT_LT(divergence[true], divergence[false]);
  for (const auto weights : {QuantizeOptions::Weights::kRtn, QuantizeOptions::Weights::kGptq}) {
    options.weights = weights;
    options.gptq_mse = true;
    for (const double kl : {0.0, kAny}) {
      options.flatten_kl = kl;
      QuantizeReport report;
      const PackedModel packed = Quantize(model_, options, windows_, &report);
      EXPECT_LE(report.self_test_error, kSelfTestBound);
      CheckCodes(packed, "test");
      EXPECT_GT(ComputeOf(packed).growth(), 1);
      for (const PackedLinear& linear : packed.blocks[1].linears) {
        const std::vector<float> scale = linear.scale.ToFloat();
        EXPECT_GT(*std::max_element(scale.begin(), scale.end()),
                  *std::min_element(scale.begin(), scale.end()));
        EXPECT_EQ(linear.bits, kl == 0 ? 8 : 4);
      }
    }
  }
}

TEST_F(FlattenQuantChoiceTest, EightBitsAreNotDoubted) {
  const BlockParameters chosen = Choose(OptionsFor("w8a8", 0));
  for (const Site site : kSites) EXPECT_EQ(chosen.site(site).flattening.bits, 8);
}

TEST_F(FlattenQuantChoiceTest, RefusesWhatItCannotMultiply) {
  const auto error = [&](const QuantizeOptions& options) {
    try {
      Quantize(model_, options, windows_, nullptr);
    } catch (const Error& failure) {
      return failure.name();
    }
    return std::string();
  };
  EXPECT_EQ(error(OptionsFor("w4a16", 0.1)), "quantize.bad_option");
  EXPECT_EQ(error(OptionsFor("w4a8", 0.1)), "quantize.bad_option");
  EXPECT_EQ(error(OptionsFor("w16a16kv4", 0.1)), "quantize.bad_option");
  QuantizeOptions learned = OptionsFor("w4a4", 0.1);
  learned.weights = QuantizeOptions::Weights::kLearned;
  EXPECT_EQ(error(learned), "quantize.bad_option");
}

}  // namespace
}  // namespace flatquant::compress
