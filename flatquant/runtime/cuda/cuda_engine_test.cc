// The engine on a GPU against the engine on this machine's processors.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <ostream>
#include <string>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/random_model.h"
#include "flatquant/runtime/cuda/cuda_device.h"
#include "flatquant/runtime/engine_testing.h"
#include "flatquant/runtime/generate.h"

namespace flatquant {
namespace {

#define FLATQUANT_NEEDS_CUDA() \
  if (CudaDeviceCount() == 0) GTEST_SKIP() << "no CUDA device"

// Heads as the GPU's attention wants them, no width a power of two but theirs.
ModelConfig GpuConfig() {
  ModelConfig config = SmallConfig();
  config.hidden = 192;
  config.ffn = 300;
  config.heads = 6;
  config.kv_heads = 2;
  config.head_dim = 64;
  config.vocab = 501;
  return config;
}

std::unique_ptr<Engine> OnGpu(PackedModel model, Precision precision = Precision::kF16) {
  return Engine::FromPacked(std::move(model),
                            {.threads = 2, .precision = precision, .device = "cuda"});
}

// Root mean square of the difference, in standard deviations of `expected`.
double RmsInDeviations(const std::vector<float>& actual, const std::vector<float>& expected) {
  EXPECT_EQ(actual.size(), expected.size());
  double squares = 0, differences = 0;
  for (size_t i = 0; i < actual.size(); ++i) {
    const double difference = static_cast<double>(actual[i]) - expected[i];
    squares += static_cast<double>(expected[i]) * expected[i];
    differences += difference * difference;
  }
  return std::sqrt(differences / squares);
}

struct Case {
  const char* scheme;
  Precision precision;
  // Two layers of 16-bit activations: their rounding is 2^-11 of a value in fp16, 2^-8 in
  // bf16. On a coarse grid that moves some codes by a step, and what follows with them; a
  // mistake in a transform or a scale would give 1 or more.
  double bound;
};

void PrintTo(const Case& c, std::ostream* stream) { *stream << c.scheme; }

class CudaEngineTest : public ::testing::TestWithParam<Case> {};

TEST_P(CudaEngineTest, AgreesWithTheCpu) {
  FLATQUANT_NEEDS_CUDA();
  for (const ModelConfig& config : {GpuConfig(), FullConfig(GpuConfig())}) {
    for (uint64_t seed = 1; seed <= 3; ++seed) {
      PackedModel model = RandomPackedModel(config, Scheme::Parse(GetParam().scheme), seed);
      const std::vector<int32_t> tokens = RandomTokens(config, 77, seed);
      const auto cpu = Engine::FromPacked(model, {.threads = 2});
      const auto gpu = OnGpu(std::move(model), GetParam().precision);
      const std::vector<float> expected = AllLogits(*cpu, tokens, tokens.size());
      // As a prompt, in pieces, and token by token (a graph from the third on).
      for (size_t piece : {tokens.size(), size_t{20}, size_t{1}}) {
        EXPECT_LT(RmsInDeviations(AllLogits(*gpu, tokens, piece), expected), GetParam().bound)
            << "pieces of " << piece << ", seed " << seed;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    Schemes, CudaEngineTest,
    ::testing::Values(Case{"w16a16", Precision::kF16, 0.01}, Case{"w16a16", Precision::kBF16, 0.05},
                      Case{"w4a16", Precision::kF16, 0.01}, Case{"w4a16kv4", Precision::kF16, 0.1},
                      Case{"w8a8", Precision::kF16, 0.1}, Case{"w4a8kv4", Precision::kF16, 0.1},
                      Case{"w4a4kv4", Precision::kF16, 0.35},
                      Case{"w4a4kv4", Precision::kBF16, 0.6}),
    [](const auto& info) {
      return std::string(info.param.scheme) +
             (info.param.precision == Precision::kF16 ? "_f16" : "_bf16");
    });

// Prompts and steps of several sequences together, as batch_test.cc: every logit of the
// batch is that of the sequence alone, but for the order of sums.
TEST(CudaEngine, BatchesAgreeWithSequencesAlone) {
  FLATQUANT_NEEDS_CUDA();
  const auto engine = OnGpu(RandomPackedModel(GpuConfig(), Scheme::Parse("w16a16"), 3));
  std::vector<std::unique_ptr<Sequence>> together, alone;
  for (int i = 0; i < 5; ++i) {
    together.push_back(std::make_unique<Sequence>(*engine, 100));
    alone.push_back(std::make_unique<Sequence>(*engine, 100));
  }
  const size_t lengths[][5] = {{7, 1, 12, 33, 2}, {1, 1, 1, 1, 1}, {1, 1, 1, 1, 1},
                               {1, 1, 1, 1, 1},   {1, 5, 1, 1, 1}, {1, 1, 1, 1, 1}};
  uint64_t seed = 1;
  for (const auto& step : lengths) {
    std::vector<std::vector<int32_t>> texts;
    std::vector<BatchItem> batch;
    for (size_t i = 0; i < 5; ++i) {
      texts.push_back(RandomTokens(engine->config(), step[i], seed++));
    }
    for (size_t i = 0; i < 5; ++i) batch.push_back({together[i].get(), texts[i]});
    const auto logits = engine->ForwardBatch(batch);
    const std::vector<float> all(logits.begin(), logits.end());
    std::vector<float> expected;
    for (size_t i = 0; i < 5; ++i) {
      const auto one = engine->Forward(*alone[i], texts[i], Engine::Logits::kLast);
      expected.insert(expected.end(), one.begin(), one.end());
    }
    EXPECT_LT(RmsInDeviations(all, expected), 0.01);
  }
}

TEST(CudaEngine, CopiesAndTruncatesSequences) {
  FLATQUANT_NEEDS_CUDA();
  const auto engine = OnGpu(RandomPackedModel(GpuConfig(), Scheme::Parse("w4a16kv4"), 4));
  const std::vector<int32_t> prompt = RandomTokens(engine->config(), 40, 1);
  const std::vector<int32_t> next = RandomTokens(engine->config(), 3, 2);
  Sequence first(*engine, 64), second(*engine, 200);
  engine->Forward(first, prompt, Engine::Logits::kLast);
  const auto logits = engine->Forward(first, next, Engine::Logits::kAll);
  const std::vector<float> expected(logits.begin(), logits.end());
  second.CopyPrefix(first, 40);
  first.Truncate(40);
  for (Sequence* sequence : {&second, &first}) {
    const auto again = engine->Forward(*sequence, next, Engine::Logits::kAll);
    EXPECT_EQ(std::vector<float>(again.begin(), again.end()), expected);
  }
}

TEST(CudaEngine, ScoresAndSamplesByItsLogits) {
  FLATQUANT_NEEDS_CUDA();
  const auto engine = OnGpu(RandomPackedModel(GpuConfig(), Scheme::Parse("w4a4kv4"), 5));
  const std::vector<int32_t> tokens = RandomTokens(engine->config(), 30, 1);
  const std::vector<float> logits = AllLogits(*engine, tokens, tokens.size());
  Sequence sequence(*engine, 64);
  std::vector<float> nll(tokens.size() - 1);
  engine->TokenNll(sequence, tokens, nll);
  const size_t vocab = static_cast<size_t>(engine->config().vocab);
  const std::span<const float> all(logits);
  for (size_t i = 0; i < nll.size(); ++i) {
    const auto row = all.subspan(i * vocab, vocab);
    EXPECT_NEAR(nll[i], SummarizeLogits(row).log_sum - row[static_cast<size_t>(tokens[i + 1])],
                1e-4);
  }
  sequence.Clear();
  Sampler greedy({}), warm({.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .seed = 3});
  Sampler same(warm);
  const BatchItem item{&sequence, tokens};
  int32_t token = -1;
  for (Sampler* sampler : {&greedy, &warm}) {
    sequence.Clear();
    engine->SampleBatch({&item, 1}, {&sampler, 1}, {&token, 1});
    Sampler on_cpu = sampler == &warm ? same : Sampler({});
    EXPECT_EQ(token, on_cpu.Next(all.last(vocab)));
  }
}

TEST(CudaEngine, NamesWhatItCannotDo) {
  const auto name_of = [](PackedModel model, const std::string& device, Precision precision) {
    try {
      Engine::FromPacked(std::move(model), {.precision = precision, .device = device});
    } catch (const Error& error) {
      return error.name();
    }
    return std::string();
  };
  const PackedModel model = RandomPackedModel(GpuConfig(), Scheme::Parse("w4a4kv4"), 6);
  EXPECT_EQ(name_of(model, "cuda", Precision::kF32), "runtime.precision");
  EXPECT_EQ(name_of(model, "cpu", Precision::kF16), "runtime.precision");
  EXPECT_EQ(name_of(model, "gpu", Precision::kDefault), "cuda.no_device");
  EXPECT_EQ(name_of(model, "cuda:x", Precision::kDefault), "cuda.no_device");
  EXPECT_EQ(name_of(model, "cuda:-1", Precision::kDefault), "cuda.no_device");
  EXPECT_EQ(name_of(model, "cuda:63", Precision::kDefault), "cuda.no_device");
  FLATQUANT_NEEDS_CUDA();
  PackedModel flattened = model;
  FlattenRandomModel(7, &flattened);
  EXPECT_EQ(name_of(flattened, "cuda", Precision::kDefault), "cuda.unsupported");
  EXPECT_EQ(name_of(RandomPackedModel(SmallConfig(), Scheme::Parse("w4a4kv4"), 6), "cuda",
                    Precision::kDefault),
            "cuda.unsupported");
}

}  // namespace
}  // namespace flatquant
