#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "flatquant/base/error.h"
#include "flatquant/bench/ceiling.h"
#include "flatquant/bench/end_to_end.h"
#include "flatquant/bench/operations.h"
#include "flatquant/bench/synthetic_model.h"
#include "flatquant/model/named_shapes.h"
#include "flatquant/model/network.h"
#include "flatquant/packed/check.h"

namespace flatquant::bench {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::StartsWith;

// TinyLlama's proportions, a hundredth of its size.
ModelConfig TinyShape() {
  ModelConfig config = NamedShape("tinyllama-1.1b");
  config.hidden = 64;
  config.ffn = 176;
  config.layers = 2;
  config.heads = 4;
  config.kv_heads = 2;
  config.head_dim = 16;
  config.vocab = 100;
  return config;
}

TEST(Shapes, HaveTheirNetworksNumberOfParameters) {
  const std::map<std::string, double> billions = {{"tinyllama-1.1b", 1.10},
                                                  {"llama-2-7b", 6.74},
                                                  {"llama-3-8b", 8.03},
                                                  {"llama-2-70b", 68.98},
                                                  {"qwen2.5-7b", 7.61}};
  for (const std::string& name : ShapeNames()) {
    const ModelConfig config = NamedShape(name);
    double weights = 0;
    for (Linear which : kLinears) {
      const LinearShape shape = ShapeOf(config, which);
      weights += static_cast<double>(shape.rows * shape.cols * config.layers);
    }
    weights += 2.0 * static_cast<double>(config.vocab * config.hidden);
    EXPECT_NEAR(weights / 1e9, billions.at(name), 0.01) << name;
  }
  EXPECT_THROW(NamedShape("gpt-5"), Error);
}

// The format can hold every synthetic model, and its transforms are orthogonal.
TEST(SyntheticModel, VariantsDifferInTheirTransforms) {
  const auto sites_with_transform = [](const PackedModel& model) {
    std::set<Site> sites;
    for (Site site : kSites) {
      if (model.blocks[1].site(site).has_transform()) sites.insert(site);
    }
    return sites;
  };
  for (const std::string& name : VariantNames()) {
    for (int head_bits : {4, 8, 16}) {
      const Variant variant = ParseVariant(name);
      const PackedModel model = SyntheticModel(TinyShape(), variant, {.head = head_bits}, 1);
      CheckPackedModel(model, name);
      CheckCodes(model, name);
      EXPECT_EQ(model.blocks.size(), 2u);
      EXPECT_EQ(model.head.bits, variant == Variant::kBF16 ? 16 : head_bits);
      EXPECT_EQ(model.blocks[0].cache.k_transform.defined(),
                variant == Variant::kQuaRot || variant == Variant::kFlatQuant);
    }
  }
  EXPECT_THAT(sites_with_transform(SyntheticModel(TinyShape(), Variant::kInt4, {}, 1)),
              ElementsAre());
  EXPECT_THAT(sites_with_transform(SyntheticModel(TinyShape(), Variant::kQuaRot, {}, 1)),
              ElementsAre(Site::kAttnOut, Site::kMlpOut));
  const PackedModel model = SyntheticModel(TinyShape(), Variant::kFlatQuant, {}, 1);
  EXPECT_EQ(sites_with_transform(model).size(), 4u);
  const Tensor& right = model.blocks[0].site(Site::kMlpOut).right;
  const int64_t n = right.shape[0];
  const std::vector<float> m = right.ToFloat();
  for (int64_t a = 0; a < n; ++a) {
    for (int64_t b = 0; b < n; ++b) {
      double dot = 0;
      for (int64_t i = 0; i < n; ++i) {
        dot += static_cast<double>(m[static_cast<size_t>(a * n + i)]) *
               m[static_cast<size_t>(b * n + i)];
      }
      ASSERT_NEAR(dot, a == b ? 1 : 0, 1e-5);
    }
  }
  EXPECT_THROW(ParseVariant("int5"), Error);
}

Plan QuickPlan() {
  Plan plan;
  plan.prompts = {20};
  plan.generated = {3};
  plan.depths = {0, 9};
  plan.batches = {1, 2};
  plan.repetitions = 2;
  plan.profile = true;
  return plan;
}

void ExpectSane(const Run& run) {
  for (const Result& result : run.results) {
    SCOPED_TRACE(result.bench + " " + result.variant + " " + result.test);
    EXPECT_GT(result.value, 0);
    EXPECT_TRUE(std::isfinite(result.value));
    EXPECT_GE(result.spread, 0);
    EXPECT_NE(result.unit, "");
    EXPECT_EQ(result.percent_of_limit >= 0, !result.limit.empty());
  }
}

std::vector<std::string> Tests(const Run& run) {
  std::vector<std::string> tests;
  for (const Result& result : run.results) {
    tests.push_back(result.test + " b" + std::to_string(result.batch));
  }
  return tests;
}

TEST(EndToEnd, RunsEveryTestOfThePlan) {
  const auto engine = Engine::FromPacked(SyntheticModel(TinyShape(), Variant::kFlatQuant, {}, 1),
                                         {.threads = 2, .precision = Precision::kBF16});
  EXPECT_TRUE(engine->multiplies_integers());
  bench::Run run;
  RunEndToEnd(*engine, {"tiny", "flatquant", true}, QuickPlan(), &run);
  EXPECT_THAT(Tests(run), ElementsAre("pp20 b1", "tg3 b1", "tg3 b2", "pp20 @ d9 b1", "tg3 @ d9 b1",
                                      "tg3 @ d9 b2"));
  ExpectSane(run);
  EXPECT_EQ(run.limits.size(), 2u);
  for (const Result& result : run.results) {
    double shares = 0;
    for (const auto& [name, share] : result.shares) shares += share;
    EXPECT_NEAR(shares, 1, 1e-6);
    EXPECT_EQ(result.unit, "tokens/s");
  }
  run.results.clear();
  RunLayer(*engine, {"tiny", "flatquant", true}, QuickPlan(), &run);
  EXPECT_EQ(run.results.size(), 6u);
  ExpectSane(run);
  for (const Result& result : run.results) EXPECT_EQ(result.unit, "us");
}

TEST(Operations, RunOnAnyShape) {
  ThreadPool pool(2);
  Plan plan = QuickPlan();
  plan.batches = {1};
  plan.repetitions = 1;
  plan.depths = {5};
  ModelConfig config = TinyShape();
  config.hidden = 512;  // copies of tiny weights would be many
  config.head_dim = 128;
  config.ffn = 1024;
  bench::Run run;
  RunAttention(config, plan, pool, &run);
  EXPECT_EQ(run.results.size(), 4u);
  RunKernels(config, plan, pool, &run);
  EXPECT_EQ(run.results.size(), 4u + 2 * 13);
  ExpectSane(run);
}

TEST(Results, MediansAndDeviations) {
  EXPECT_EQ(Median({3, 1, 2}), 2);
  EXPECT_EQ(Median({4, 1, 2, 3}), 2.5);
  EXPECT_EQ(Deviation({5}), 0);
  EXPECT_NEAR(Deviation({2, 4, 4, 4, 5, 5, 7, 9}), 2.138, 1e-3);
}

TEST(Results, Formats) {
  bench::Run run;
  run.threads = 2;
  run.kernels = KernelsInUse();
  Result result;
  result.bench = "e2e";
  result.variant = "flatquant";
  result.model = "tinyllama-1.1b";
  result.test = "pp512";
  result.value = 1000;
  result.unit = "tokens/s";
  result.percent_of_limit = 19.4;
  result.limit = "AMX-INT8";
  run.results.push_back(result);
  result.bench = "kernel";
  result.percent_of_limit = -1;
  result.limit = "";
  run.results.push_back(result);
  const auto json = nlohmann::json::parse(FormatRun(run, Format::kJson)).at("results");
  EXPECT_EQ(json.at(0).at("bench"), "e2e");
  EXPECT_EQ(json.at(0).at("variant"), "flatquant");
  EXPECT_EQ(json.at(0).at("test"), "pp512");
  EXPECT_EQ(json.at(0).at("value"), 1000);
  EXPECT_EQ(json.at(0).at("unit"), "tokens/s");
  EXPECT_EQ(json.at(0).at("percent_of_limit"), 19.4);
  EXPECT_FALSE(json.at(1).contains("percent_of_limit"));
  const std::string table = FormatRun(run, Format::kMarkdown);
  EXPECT_THAT(table, StartsWith("| model"));
  EXPECT_THAT(table, HasSubstr("| 1000.0 ± 0.00 |"));
  EXPECT_THAT(table, HasSubstr("kernels: Attention "));
  EXPECT_THAT(FormatRun(run, Format::kCsv),
              HasSubstr("\ne2e,tinyllama-1.1b,flatquant,0,0,2,1,pp512,1000,0,tokens/s,19.4,AMX"));
}

TEST(Ceilings, PercentOfWork) {
  const Ceiling ceiling{200, "x"};
  EXPECT_DOUBLE_EQ(ceiling.PercentOf(100, 2), 25);
  EXPECT_EQ(Ceiling{}.PercentOf(1, 1), -1);
  Limits a, b;
  a.cpu.read_bytes_per_s = 5;
  b.cpu.fma_flops_per_s = 7;
  EXPECT_EQ(Larger(a, b).cpu.read_bytes_per_s, 5);
  EXPECT_EQ(Larger(a, b).cpu.fma_flops_per_s, 7);
  EXPECT_FALSE(Larger(a, b).gpu.has_value());
  a.gpu = CudaLimits{1, 2, 3};
  b.gpu = CudaLimits{3, 2, 1};
  EXPECT_EQ(ReadBandwidth(Larger(a, b)).per_second, 3);
  EXPECT_EQ(FloatPeak(Larger(a, b)).per_second, 3);
  EXPECT_EQ(IntegerPeak(Larger(a, b)).name, "INT8 wgmma");
}

}  // namespace
}  // namespace flatquant::bench
