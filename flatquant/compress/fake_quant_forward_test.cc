#include "flatquant/compress/fake_quant_forward.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/compress/quantize.h"
#include "flatquant/compress/tiny_model_for_test.h"

namespace flatquant {
namespace {

using compress::RandomWindows;
using compress::TinyLlama;
using compress::TinyQwen3;
using compress::WriteTinyModel;

PackedModel Rtn(const SourceModel& model, const char* scheme) {
  QuantizeOptions options;
  options.method = "rtn";
  options.scheme = Scheme::Parse(scheme);
  return Quantize(model, options, nullptr);
}

class GoldenTest : public ::testing::TestWithParam<const char*> {};

// Hugging Face's logits of the same network.
TEST_P(GoldenTest, UnquantizedModelHasTheReferencesLikelihoods) {
  const std::string folder = std::string("fixtures/") + GetParam();
  FLATQUANT_NEEDS_SHARED(folder);
  const SourceModel model = SourceModel::Open(testing::SharedPath(folder));
  const Checkpoint golden =
      Checkpoint::Open(testing::SharedPath(folder) / "golden_logits.safetensors");
  const Tensor* ids = golden.Find("input_ids");
  const Tensor* logits = golden.Find("logits");
  ASSERT_TRUE(ids != nullptr && logits != nullptr);
  ASSERT_EQ(ids->dtype, DType::kI32);

  TokenWindows windows{ids->shape[0], ids->shape[1], {}};
  windows.ids.resize(ids->elements());
  std::memcpy(windows.ids.data(), ids->data, ids->bytes());
  const std::vector<float> nll = FakeQuantTokenNll(Rtn(model, "w16a16"), windows);

  const std::vector<float> rows = logits->ToFloat();
  const int64_t vocab = logits->shape[2];
  size_t at = 0;
  for (int64_t window = 0; window < windows.count; ++window) {
    for (int64_t i = 0; i + 1 < windows.length; ++i) {
      const float* row = rows.data() + (window * windows.length + i) * vocab;
      const double largest = *std::max_element(row, row + vocab);
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(row[v] - largest);
      const double expected = largest + std::log(sum) - row[windows.window(window)[i + 1]];
      // Logits, whose deviation is about 1 here, may differ by 2e-4: float32 networks
      // with other orders of sums. A likelihood is the difference of two such terms.
      ASSERT_NEAR(nll[at++], expected, 4e-4) << "window " << window << " token " << i;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Fixtures, GoldenTest,
                         ::testing::Values("llama-mha", "llama31-gqa", "qwen2"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::replace(name.begin(), name.end(), '-', '_');
                           return name;
                         });

double MeanDifference(const std::vector<float>& a, const std::vector<float>& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += std::abs(a[i] - b[i]);
  return sum / static_cast<double>(a.size());
}

TEST(FakeQuantTokenNll, FewerBitsMoveTheLikelihoodsFurther) {
  for (const ModelConfig& config : {TinyLlama(), TinyQwen3()}) {
    const SourceModel model = SourceModel::Open(WriteTinyModel(config, 1));
    const TokenWindows windows = RandomWindows(config, 3, 20, 2);
    const std::vector<float> exact = FakeQuantTokenNll(Rtn(model, "w16a16"), windows);
    ASSERT_EQ(exact.size(), 3u * 19);
    double last = 0;
    for (const char* scheme : {"w8a8", "w4a16", "w4a4kv4", "w2a2kv2"}) {
      const double difference =
          MeanDifference(FakeQuantTokenNll(Rtn(model, scheme), windows), exact);
      EXPECT_GT(difference, last) << scheme;
      last = difference;
    }
  }
}

// A token's likelihood depends on nothing after it and on no other window.
TEST(FakeQuantTokenNll, IsCausalAndTreatsWindowsAlone) {
  const ModelConfig config = TinyLlama();
  const SourceModel model = SourceModel::Open(WriteTinyModel(config, 1));
  const PackedModel packed = Rtn(model, "w4a4kv4");
  TokenWindows windows = RandomWindows(config, 2, 20, 2);
  const std::vector<float> before = FakeQuantTokenNll(packed, windows);
  windows.ids.back() = (windows.ids.back() + 1) % static_cast<int32_t>(config.vocab);
  const std::vector<float> after = FakeQuantTokenNll(packed, windows);
  EXPECT_NE(before.back(), after.back());
  for (size_t i = 0; i + 1 < before.size(); ++i) EXPECT_EQ(before[i], after[i]) << i;
}

}  // namespace
}  // namespace flatquant
