// How scores become figures, with likelihoods made up by the test.
#include "flatquant/eval/task_evaluation.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <limits>

#include "flatquant/base/error.h"
#include "flatquant/data/byte_tokenizer.h"

namespace flatquant {
namespace {

using testing::ByteTokenizer;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Scores the texts behind the tokens of a ByteTokenizer.
class FakeScorer : public LikelihoodScorer {
 public:
  using Rule = std::function<LikelihoodScore(const std::string&, const std::string&)>;
  explicit FakeScorer(Rule rule) : rule_(std::move(rule)) {}

  std::vector<std::vector<LikelihoodScore>> Score(
      std::span<const LikelihoodGroup> groups) override {
    const ByteTokenizer tokenizer;
    std::vector<std::vector<LikelihoodScore>> scores;
    for (const LikelihoodGroup& group : groups) {
      scores.emplace_back();
      for (const LikelihoodRequest& request : group) {
        scores.back().push_back(rule_(tokenizer.Decode(request.context, true),
                                      tokenizer.Decode(request.continuation, true)));
      }
    }
    return scores;
  }

 private:
  Rule rule_;
};

const TaskRule& Rule(const char* name) { return *ParseTaskList(name)[0]; }

TaskItem Item(std::vector<std::string> answers, size_t gold) {
  TaskItem item;
  for (const std::string& answer : answers) {
    item.choices.push_back({"Q", " " + answer});
    item.characters.push_back(CountCharacters(answer));
  }
  item.gold = gold;
  item.where = "file:1";
  return item;
}

PreparedTask Prepare(const char* name, std::vector<TaskItem> items, int64_t max_positions = 64) {
  return PrepareTask(Rule(name), std::move(items), ByteTokenizer(), BosRule::kTokenizer,
                     max_positions);
}

// Nats per character of the answers "aaaa" and "bb", blank in front not counted.
LikelihoodScore LongIsLikelierPerCharacter(const std::string&, const std::string& continuation) {
  return {continuation == " aaaa" ? -4.0 : -3.0, false};
}

TEST(TaskEvaluation, AccAndAccNorm) {
  // acc: -3 beats -4; acc_norm: -4/4 beats -3/2.
  FakeScorer scorer(LongIsLikelierPerCharacter);
  const auto results = EvaluateTask(
      Prepare("piqa", {Item({"aaaa", "bb"}, 0), Item({"bb", "aaaa"}, 0), Item({"aaaa", "bb"}, 0)}),
      scorer);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].metric, "acc");
  EXPECT_THAT(results[0].samples, ElementsAre(0, 1, 0));
  EXPECT_DOUBLE_EQ(results[0].value, 1.0 / 3);
  EXPECT_DOUBLE_EQ(results[0].error, std::sqrt(1.0 / 3 * 2 / 3 / 2));
  EXPECT_EQ(results[1].metric, "acc_norm");
  EXPECT_THAT(results[1].samples, ElementsAre(1, 0, 1));
  EXPECT_EQ(results[1].items, 3);
  // BOS "Q", then " aaaa" and " bb": 2 + 5 and 2 + 3 tokens each.
  EXPECT_EQ(results[1].tokens, 3 * (7 + 5));
}

TEST(TaskEvaluation, OfEqualChoicesTheFirstCounts) {
  FakeScorer scorer([](const auto&, const auto&) { return LikelihoodScore{-2.0, false}; });
  const auto results = EvaluateTask(
      Prepare("arc_easy", {Item({"aa", "bb", "cc"}, 0), Item({"aa", "bb", "cc"}, 1)}), scorer);
  EXPECT_THAT(results[0].samples, ElementsAre(1, 0));
  EXPECT_THAT(results[1].samples, ElementsAre(1, 0));
}

TEST(TaskEvaluation, WinograndeHasNoAccNorm) {
  TaskItem item;
  item.choices = {{"the cup", " was red"}, {"the box", " was red"}};
  item.gold = 1;
  FakeScorer scorer([](const std::string& context, const std::string&) {
    return LikelihoodScore{context == "the box" ? -1.0 : -2.0, false};
  });
  const auto results = EvaluateTask(Prepare("winogrande", {item}), scorer);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].value, 1);
}

TEST(TaskEvaluation, LambadaHasGreedyAccuracyAndPerplexity) {
  std::vector<TaskItem> items(2);
  items[0].choices = {{"one", " two"}};
  items[1].choices = {{"one", " three"}};
  FakeScorer scorer([](const std::string&, const std::string& continuation) {
    return continuation == " two" ? LikelihoodScore{-1.0, true} : LikelihoodScore{-4.0, false};
  });
  const auto results = EvaluateTask(Prepare("lambada_openai", items), scorer);
  ASSERT_EQ(results.size(), 2u);
  EXPECT_DOUBLE_EQ(results[0].value, 0.5);
  EXPECT_EQ(results[1].metric, "perplexity");
  EXPECT_DOUBLE_EQ(results[1].value, std::exp(2.5));  // per word, whatever its tokens
}

TEST(TaskEvaluation, SlicesKeepTheOrder) {
  std::vector<TaskItem> items;
  for (int i = 0; i < 700; ++i) {  // 12 tokens each: several slices
    items.push_back(Item({"aaaa", "bb"}, i % 3 == 0 ? 0 : 1));
  }
  FakeScorer scorer(LongIsLikelierPerCharacter);
  int64_t next = 0;
  const auto results = EvaluateTask(Prepare("piqa", items), scorer, [&](const TaskSample& sample) {
    EXPECT_EQ(sample.index, next++);
    EXPECT_EQ(sample.acc_norm, sample.index % 3 == 0);
  });
  EXPECT_EQ(next, 700);
  EXPECT_EQ(results[1].items, 700);
}

TEST(TaskEvaluation, SamplesAsJson) {
  const TaskItem item = Item({"aaaa", "bb"}, 0);
  const std::vector<LikelihoodScore> scores = {{-4, false}, {-3, true}};
  const auto json = nlohmann::json::parse(SampleJson(JudgeItem(Rule("piqa"), item, scores)));
  EXPECT_EQ(json.dump(),
            R"({"acc":0,"acc_norm":1,"arguments":[["Q"," aaaa"],["Q"," bb"]],"choice":1,)"
            R"("choice_norm":0,"index":0,"resps":[[-4.0,false],[-3.0,true]],"target":0,)"
            R"("task":"piqa","where":"file:1"})");
}

TEST(TaskEvaluation, FailuresNameTheItem) {
  // BOS, "Q", " aaaa": 7 tokens, of which the last is not read.
  EXPECT_NO_THROW(Prepare("piqa", {Item({"aaaa", "bb"}, 0)}, 6));
  try {
    Prepare("piqa", {Item({"aaaa", "bb"}, 0)}, 5);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "eval.context");
    EXPECT_THAT(error.what(), HasSubstr("file:1"));
  }
  FakeScorer scorer([](const auto&, const auto&) {
    return LikelihoodScore{std::numeric_limits<double>::quiet_NaN(), false};
  });
  try {
    EvaluateTask(Prepare("piqa", {Item({"aaaa", "bb"}, 0)}), scorer);
    ADD_FAILURE();
  } catch (const Error& error) {
    EXPECT_EQ(error.name(), "eval.not_finite");
  }
}

EvalResult Figure(const char* name, const char* metric, double value, double error) {
  EvalResult result;
  result.name = name;
  result.metric = metric;
  result.kind = std::string(metric) == "perplexity" ? EvalResult::Kind::kPerplexity
                                                    : EvalResult::Kind::kAccuracy;
  result.value = value;
  result.error = error;
  return result;
}

TEST(TaskAverage, TakesAccNormWhereATaskHasIt) {
  const std::vector<EvalResult> results = {
      Figure("wikitext2", "perplexity", 27, 1),   Figure("piqa", "acc", 0.5, 0.1),
      Figure("piqa", "acc_norm", 0.6, 0.03),      Figure("winogrande", "acc", 0.7, 0.04),
      Figure("lambada_openai", "acc", 0.2, 0.12), Figure("lambada_openai", "perplexity", 9, 1)};
  EXPECT_THAT(AveragedResults(results), ElementsAre(2, 3, 4));
  const auto average = TaskAverage(results);
  ASSERT_EQ(average.size(), 1u);
  EXPECT_DOUBLE_EQ(average[0].value, 0.5);
  EXPECT_DOUBLE_EQ(average[0].error, 0.13 / 3);  // 3, 4, 12: 13
  EXPECT_EQ(average[0].metric, "3 tasks");
  EXPECT_TRUE(TaskAverage(std::span(results).first(3)).empty());
}

}  // namespace
}  // namespace flatquant
