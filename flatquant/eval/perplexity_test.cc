#include "flatquant/eval/perplexity.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/eval/small_engine_for_test.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using testing::RandomText;
using testing::ScratchFolder;
using testing::SmallEngine;

// Every scored token's likelihood by its definition.
std::vector<double> Expected(const Engine& engine, const TextWindows& text) {
  std::vector<double> nll;
  for (const TextWindows::Window& window : text.windows) {
    Sequence sequence(engine, window.length);
    const auto tokens = text.tokens(window);
    const auto logits = engine.Forward(sequence, tokens, Engine::Logits::kAll);
    for (int64_t i = window.length - window.scored; i < window.length; ++i) {
      const float* row = logits.data() + (i - 1) * 50;
      double sum = 0;
      for (int j = 0; j < 50; ++j) sum += std::exp(static_cast<double>(row[j]));
      nll.push_back(std::log(sum) - row[tokens[static_cast<size_t>(i)]]);
    }
  }
  return nll;
}

TEST(Perplexity, ByItsDefinition) {
  const auto engine = SmallEngine(1);
  TextWindows text = RandomText(20, 3, 5);
  for (bool strided : {false, true}) {
    if (strided) text.windows = StridedWindows(60, 20, 7);
    const EvalResult result = Perplexity(*engine, text);
    const std::vector<double> expected = Expected(*engine, text);
    ASSERT_EQ(result.samples.size(), expected.size());
    double sum = 0;
    for (size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(result.samples[i], expected[i], 1e-5 * expected[i]);
      sum += expected[i];
    }
    EXPECT_NEAR(result.value, std::exp(sum / static_cast<double>(expected.size())),
                1e-5 * result.value);
    EXPECT_EQ(result.windows, static_cast<int64_t>(text.windows.size()));
  }
}

TEST(Perplexity, RefusesWindowsLongerThanTheContext) {
  try {
    Perplexity(*SmallEngine(1), RandomText(513, 1, 5));
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "eval.context");
  }
}

TEST(Perplexity, GoesOnWhereItWasInterrupted) {
  const auto engine = SmallEngine(1);
  const TextWindows text = RandomText(20, 4, 5);
  const EvalResult whole = Perplexity(*engine, text);
  const auto path = ScratchFolder() / "state";
  {  // three of four windows
    PerplexityState state(path);
    TextWindows part = text;
    part.windows.pop_back();
    Perplexity(*engine, part, &state, 77);
  }
  // The rest comes from another model: what was kept is not run again.
  PerplexityState state(path);
  EXPECT_EQ(state.run(77).windows, 3u);
  const EvalResult resumed = Perplexity(*SmallEngine(2), text, &state, 77);
  ASSERT_EQ(resumed.samples.size(), whole.samples.size());
  for (size_t i = 0; i < 57; ++i) EXPECT_EQ(resumed.samples[i], whole.samples[i]);
  EXPECT_NE(resumed.samples[57], whole.samples[57]);
  // Another key is another run; a finished one is only read.
  PerplexityState again(path);
  EXPECT_EQ(Perplexity(*engine, text, &again, 78).samples, whole.samples);
  EXPECT_EQ(Perplexity(*engine, text, &again, 77).samples, resumed.samples);
}

TEST(Perplexity, RefusesARunThatDoesNotFit) {
  const auto engine = SmallEngine(1);
  const auto path = ScratchFolder() / "state";
  PerplexityState state(path);
  Perplexity(*engine, RandomText(20, 2, 5), &state, 1);
  EXPECT_THROW(Perplexity(*engine, RandomText(20, 1, 5), &state, 1), Error);
  EXPECT_THROW(Perplexity(*engine, RandomText(10, 4, 5), &state, 1), Error);
}

TEST(PerplexityState, RefusesDamagedFiles) {
  const auto path = ScratchFolder() / "state";
  PerplexityState state(path);
  state.run(5) = {2, {1.0f, 2.0f, 3.0f}};
  state.run(6) = {1, {4.0f}};
  state.Save();
  const std::string good = ReadFile(path);
  EXPECT_EQ(PerplexityState(path).run(5).nll, state.run(5).nll);
  const auto fails = [&](const std::string& bytes) {
    std::filesystem::remove(path);  // file systems may sync one that is written over
    std::ofstream(path, std::ios::binary) << bytes;
    try {
      PerplexityState read(path);
    } catch (const Error& error) {
      return error.name() == "eval.bad_state";
    }
    return false;
  };
  for (size_t length = 0; length < good.size(); ++length) {
    EXPECT_TRUE(fails(good.substr(0, length))) << length;
  }
  for (size_t at = 0; at < good.size(); ++at) {  // the checksum covers everything
    std::string bad = good;
    bad[at] = static_cast<char>(bad[at] ^ 0x10);
    EXPECT_TRUE(fails(bad)) << at;
  }
  EXPECT_TRUE(fails(good + "x"));
  EXPECT_FALSE(fails(good));
}

}  // namespace
}  // namespace flatquant
