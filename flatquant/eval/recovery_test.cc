#include "flatquant/eval/recovery.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "flatquant/eval/task_evaluation.h"

namespace flatquant {
namespace {

using ::testing::HasSubstr;
using Kind = EvalResult::Kind;

std::vector<EvalResult> Figures(std::vector<float> nll, std::vector<float> piqa,
                                std::vector<float> winogrande) {
  std::vector<EvalResult> results = {
      EvalResult::FromSamples("wikitext2", "perplexity", Kind::kPerplexity, std::move(nll)),
      EvalResult::FromSamples("piqa", "acc_norm", Kind::kAccuracy, std::move(piqa)),
      EvalResult::FromSamples("winogrande", "acc", Kind::kAccuracy, std::move(winogrande))};
  for (const EvalResult& average : TaskAverage(results)) results.push_back(average);
  return results;
}

TEST(Recovery, HigherAndLowerIsBetter) {
  const float ln2 = std::log(2.0f);
  const auto base = Figures({ln2, ln2}, {1, 1, 1, 1}, {1, 1, 0, 0});
  const auto results = Figures({2 * ln2, 2 * ln2}, {1, 1, 1, 0}, {0, 1, 0, 1});
  const auto rows = Recover(base, results);
  ASSERT_EQ(rows.size(), 4u);
  EXPECT_NEAR(rows[0].difference, 2, 1e-6);  // perplexity 2 becomes 4
  EXPECT_NEAR(rows[0].recovered, 50, 1e-5);
  EXPECT_NEAR(rows[0].error, 0, 1e-6);
  EXPECT_DOUBLE_EQ(rows[1].difference, -0.25);
  EXPECT_DOUBLE_EQ(rows[1].recovered, 75);
  EXPECT_DOUBLE_EQ(rows[1].error, 0.25);  // differences 0 0 0 -1
  EXPECT_DOUBLE_EQ(rows[2].recovered, 100);
  EXPECT_DOUBLE_EQ(rows[2].error, std::sqrt(2.0 / 3 / 4));  // -1 0 0 1
  EXPECT_DOUBLE_EQ(rows[3].base, 0.75);
  EXPECT_DOUBLE_EQ(rows[3].recovered, 100 * 0.625 / 0.75);
  EXPECT_DOUBLE_EQ(rows[3].error, std::sqrt(1.0 / 16 + 1.0 / 6) / 2);
  const std::string table = FormatRecovery(rows);
  EXPECT_THAT(table, HasSubstr("piqa             acc_norm       100.00      75.00"));
  EXPECT_THAT(table, HasSubstr("-25.00 ± 25.00"));
  EXPECT_EQ(RecoveryJson(rows)[1]["recovered_percent"].get<double>(), 75);
}

TEST(Recovery, ErrorsArePaired) {
  // Both models find the second half hard; the quantized one loses 0.1 throughout.
  const auto base = Figures({1, 1, 3, 3}, {1, 0}, {1, 0});
  const auto results = Figures({1.1f, 1.1f, 3.1f, 3.1f}, {1, 0}, {1, 0});
  const auto rows = Recover(base, results);
  EXPECT_NEAR(rows[0].recovered, 100 * std::exp(-0.1), 1e-4);
  // d(Q - base) = (Q - base) d(nll): far below the errors of either.
  EXPECT_NEAR(rows[0].error, std::abs(rows[0].difference) / base[0].value * base[0].error, 1e-4);
  EXPECT_LT(rows[0].error, 0.2 * base[0].error);
  EXPECT_EQ(rows[1].error, 0);
}

TEST(Recovery, NothingToRecoverIsUnknown) {
  const auto base = Figures({1, 1}, {0, 0}, {0, 1});
  EXPECT_TRUE(std::isnan(Recover(base, base)[1].recovered));
}

}  // namespace
}  // namespace flatquant
