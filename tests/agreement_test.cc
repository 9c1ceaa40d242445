// The two halves agree: a packed model's likelihoods through the runtime (integer
// arithmetic, packed cache) equal those through LibTorch (compress's fake-quant
// forward, which shares no arithmetic with it).

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "tests/support/shared_data.h"
#if FLATQUANT_WITH_COMPRESS
#include "flatquant/compress/fake_quant_forward.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/data/lazy_tokenizer.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/model/source_model.h"
#include "flatquant/packed/head.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {
namespace {

// In few bits a sum that ends near a half-way case rounds to the other code when
// it is added up in another order. One such code changes what follows it, through
// the cache later tokens too, so that two correct implementations drift apart like
// two draws of the same quantization noise: the deeper, the further. Hence the means'
// difference must be within kMeanBound of noise, that is within kSigmas standard
// errors more. That alone would let a small mistake hide in the noise: on one block,
// where few codes flip, most tokens of a window must agree within kMedianBound; of one
// of kWindows, because a flip at a window's start reaches all its tokens.
constexpr double kMeanBound = 1e-3;
constexpr double kMedianBound = 1e-4;
constexpr int64_t kWindows = 3;
constexpr double kSigmas = 4;

struct Difference {
  double mean = 0;
  double standard_error = 0;
  double level = 0;   // mean likelihood of the expected side
  double median = 0;  // of the tokens' absolute differences, in the best window
};

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

Difference Compare(const PackedModel& packed, const TokenWindows& windows) {
  const std::vector<float> expected = FakeQuantTokenNll(packed, windows);
  const auto engine = Engine::FromPacked(packed, EngineOptions{});
  const size_t predicted = static_cast<size_t>(windows.length - 1);
  std::vector<float> got(predicted);
  EXPECT_EQ(expected.size(), static_cast<size_t>(windows.count) * predicted);

  Difference difference;
  difference.median = std::numeric_limits<double>::infinity();
  const auto n = static_cast<double>(expected.size());
  double squares = 0;
  for (int64_t w = 0; w < windows.count; ++w) {
    Sequence sequence(*engine, windows.length);
    engine->TokenNll(sequence, {windows.window(w), predicted + 1}, got);
    std::vector<double> absolute;
    for (size_t i = 0; i < predicted; ++i) {
      const double reference = expected[static_cast<size_t>(w) * predicted + i];
      const double d = static_cast<double>(got[i]) - reference;
      difference.mean += d / n;
      difference.level += reference / n;
      squares += d * d / n;
      absolute.push_back(std::abs(d));
    }
    difference.median = std::min(difference.median, Median(absolute));
  }
  difference.standard_error = std::sqrt(squares / n);
  return difference;
}

// An embedding of integers times norms of bf16's few bits meets half-way cases exactly, in
// every window, where any rounding of a sum decides; norms of all of float's bits do not.
void ShiftNorms(PackedModel* packed) {
  for (PackedBlock& block : packed->blocks) {
    for (Tensor* norm : {&block.input_norm, &block.post_attention_norm}) {
      const float* from = reinterpret_cast<const float*>(norm->data);
      std::vector<float> weights(from, from + norm->shape[0]);
      for (size_t i = 0; i < weights.size(); ++i) {
        weights[i] *= 1.0f + 1e-3f * std::sin(static_cast<float>(i));
      }
      *norm = Tensor::Floats(norm->shape, std::move(weights));
    }
  }
}

// Attention over caches of nibbles may count in 8 bits: then codes flip in every window of
// one block, too, and means alone can agree. FLATQUANT_ISA=avx512 has floats instead.
bool CountsInNibbles(const Scheme& scheme) {
  return BestKernel<AttentionKernel>().kernel->nibble_rounding > 0 && scheme.k_bits <= 4 &&
         scheme.v_bits <= 4;
}

void ExpectAgreement(const std::filesystem::path& directory, const QuantizeOptions& options,
                     const DataSpec& text, int64_t length, int head_bits = 16) {
  const SourceModel source = SourceModel::Open(directory);
  const LazyTokenizer tokenizer(directory);
  const TokenWindows windows =
      EvaluationWindows(text, tokenizer, length, kWindows, source.config().vocab);
  PackedModel packed = Quantize(source, options, nullptr);
  if (head_bits < 16) {
    QuantizeHead(head_bits, kHeadActBits, &packed);
    ShiftNorms(&packed);
  }

  const Difference deep = Compare(packed, windows);
  EXPECT_GT(deep.level, 1.0);
  EXPECT_LE(std::abs(deep.mean), kMeanBound + kSigmas * deep.standard_error);

  packed.blocks.resize(1);
  packed.config.layers = 1;
  const Difference shallow = Compare(packed, windows);
  EXPECT_LE(std::abs(shallow.mean), kMeanBound + kSigmas * shallow.standard_error);
  if (!CountsInNibbles(packed.scheme)) {
    EXPECT_LE(shallow.median, kMedianBound);
  }
  std::printf(
      "difference of mean NLL: one block %.1e +- %.1e (median %.1e), all blocks %.1e +- %.1e\n",
      shallow.mean, shallow.standard_error, shallow.median, deep.mean, deep.standard_error);
}

DataSpec DemoText() {
  return DataSpec::Parse("jsonl:" +
                         testing::SourcePath("models/demo-7m/selfgen-eval.jsonl").string());
}

class AgreementTest : public ::testing::TestWithParam<const char*> {};

TEST_P(AgreementTest, RoundToNearestOnTheDemoModel) {
  QuantizeOptions options;
  options.method = "rtn";
  options.scheme = Scheme::Parse(GetParam());
  ExpectAgreement(testing::SourcePath("models/demo-7m"), options, DemoText(), 1024);
}

INSTANTIATE_TEST_SUITE_P(Schemes, AgreementTest,
                         ::testing::Values("w4a4kv4", "w4a16", "w8a8", "w4a8kv4", "w16a16kv2",
                                           "w3a5k6v3", "w16a16"),
                         [](const auto& info) { return std::string(info.param); });

// Groups that do not divide a row: the last has 56 or 4 columns.
TEST(AgreementOfGroupsTest, RoundToNearestOnTheDemoModel) {
  QuantizeOptions options;
  options.method = "rtn";
  options.group_size = 100;
  for (const char* scheme : {"w4a16", "w8a8"}) {
    options.scheme = Scheme::Parse(scheme);
    ExpectAgreement(testing::SourcePath("models/demo-7m"), options, DemoText(), 512);
  }
}

// An output projection in integers, which the demo model's embedding is too.
// With 8 bits at the sites: windows begin with the same token, whose few bits would meet
// a half-way case of 4 in all of them or none.
TEST(AgreementOfHeadsTest, RoundToNearestOnTheDemoModel) {
  QuantizeOptions options;
  options.method = "rtn";
  for (const char* scheme : {"w16a16", "w8a8"}) {
    for (int bits : {4, 8}) {
      options.scheme = Scheme::Parse(scheme);
      ExpectAgreement(testing::SourcePath("models/demo-7m"), options, DemoText(), 512, bits);
    }
  }
}

// Transforms at every site and in the cache, learned in two short steps per block.
TEST(AgreementWithTransformsTest, FlatQuantOnTheDemoModel) {
  QuantizeOptions options;
  options.calib = DataSpec::Parse(
      "jsonl:" + testing::SourcePath("models/demo-7m/selfgen-calib.jsonl").string());
  options.nsamples = 4;
  options.seqlen = 128;
  options.epochs = 2;
  ExpectAgreement(testing::SourcePath("models/demo-7m"), options, DemoText(), 1024);
}

// Constant steps and channels in several columns, in 4 and in 8 bits.
TEST(AgreementOfFlattenedSitesTest, FlattenQuantOnTheDemoModel) {
  QuantizeOptions options;
  options.method = "flattenquant";
  options.scheme = Scheme::Parse("w4a4");
  options.calib = DataSpec::Parse(
      "jsonl:" + testing::SourcePath("models/demo-7m/selfgen-calib.jsonl").string());
  options.nsamples = 4;
  options.seqlen = 128;
  ExpectAgreement(testing::SourcePath("models/demo-7m"), options, DemoText(), 1024);
}

// The original's matrices, with its activation clips per linear, at full length.
TEST(AgreementWithTransformsTest, ImportedMatricesOnWikillama) {
  FLATQUANT_NEEDS_SHARED("models/wikillama-43m");
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/flat_matrices.pth");
  QuantizeOptions options;
  options.transforms = testing::SharedPath("golden/wikillama-43m/flat_matrices.pth");
  const DataSpec text =
      DataSpec::Parse("wikitext2:" + testing::SharedPath("data/wiki.test.raw").string());
  ExpectAgreement(testing::SharedPath("models/wikillama-43m"), options, text, 2048);
}

}  // namespace
}  // namespace flatquant

#else

TEST(AgreementTest, NeedsBothHalves) { GTEST_SKIP() << "built without the compression half"; }

#endif
