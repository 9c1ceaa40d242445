// From files to figures with the embedded model: its tokenizer, its BOS, its words.
#include <gtest/gtest.h>

#include <cmath>
#include <fstream>

#include "flatquant/eval/engine_scorer.h"
#include "flatquant/eval/task_evaluation.h"
#include "flatquant/tokenizer/tokenizer.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

using testing::ScratchFolder;
using testing::SourcePath;

class DemoModel : public ::testing::Test {
 protected:
  DemoModel()
      : tokenizer_(Tokenizer::Open(SourcePath("models/demo-7m"))),
        engine_(Engine::Open(SourcePath("models/demo-7m"), {.threads = 2})) {}

  PreparedTask Prepare(const char* task, const char* file, const std::string& lines) {
    const auto folder = ScratchFolder();
    std::ofstream(folder / file) << lines;
    const TaskRule& rule = *ParseTaskList(task)[0];
    return PrepareTask(rule, ReadTask(rule, folder, 0), *tokenizer_, BosRule::kTokenizer,
                       engine_->config().max_positions);
  }

  // log p of a continuation by its definition: the whole text as one, no batch.
  double LogLikelihood(const TextPair& pair) {
    const size_t context = tokenizer_->Encode(pair.context, true).size();
    const auto whole = tokenizer_->Encode(pair.context + pair.continuation, true);
    Sequence sequence(*engine_, static_cast<int64_t>(whole.size()));
    const auto logits = engine_->Forward(sequence, whole, Engine::Logits::kAll);
    const size_t vocab = static_cast<size_t>(engine_->config().vocab);
    double total = 0;
    for (size_t i = context; i < whole.size(); ++i) {
      const float* row = logits.data() + (i - 1) * vocab;
      double sum = 0;
      for (size_t j = 0; j < vocab; ++j) sum += std::exp(static_cast<double>(row[j]));
      total += row[whole[i]] - std::log(sum);
    }
    return total;
  }

  std::unique_ptr<Tokenizer> tokenizer_;
  std::unique_ptr<Engine> engine_;
};

// Word order that any model of English must prefer.
TEST_F(DemoModel, PrefersSenseToNonsense) {
  const PreparedTask task = Prepare(
      "piqa", "piqa_valid.jsonl",
      R"({"goal": "How does one go to school?", "sol1": "By going there on the bus.", "sol2": "The there by on going bus.", "label": 0})"
      "\n"
      R"({"goal": "Where do people live?", "sol1": "City the in people many.", "sol2": "Many people live in the city.", "label": 1})"
      "\n"
      R"({"goal": "When was the town founded?", "sol1": "It was founded in the 19th century.", "sol2": "Century was the it founded in 19th.", "label": 0})"
      "\n");
  EngineScorer scorer(*engine_);
  const auto results = EvaluateTask(task, scorer, [&](const TaskSample& sample) {
    for (size_t i = 0; i < sample.scores.size(); ++i) {
      const double expected = LogLikelihood(sample.item->choices[i]);
      EXPECT_NEAR(sample.scores[i].log_likelihood, expected, 1e-4 * std::abs(expected));
    }
  });
  EXPECT_EQ(results[0].value, 1);
  EXPECT_EQ(results[1].value, 1);
}

TEST_F(DemoModel, WinograndeAndLambadaByTheirDefinitions) {
  EngineScorer scorer(*engine_);
  for (const PreparedTask& task :
       {Prepare("winogrande", "winogrande_xl_dev.jsonl",
                R"({"sentence": "The king gave the sword to the prince because _ was old.", )"
                R"("option1": "the king", "option2": "the prince", "answer": "1"})"),
        Prepare("lambada_openai", "lambada_test.jsonl",
                R"({"text": "The first season of the show was followed by the second season"})")}) {
    int64_t seen = 0;
    EvaluateTask(task, scorer, [&](const TaskSample& sample) {
      ++seen;
      for (size_t i = 0; i < sample.scores.size(); ++i) {
        const double expected = LogLikelihood(sample.item->choices[i]);
        EXPECT_LT(expected, 0);
        EXPECT_NEAR(sample.scores[i].log_likelihood, expected, 1e-4 * std::abs(expected));
      }
    });
    EXPECT_EQ(seen, 1);
  }
}

}  // namespace
}  // namespace flatquant
