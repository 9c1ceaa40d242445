#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "flatquant/eval/boundary.h"
#include "flatquant/eval/likelihood_scorer.h"
#include "flatquant/eval/result.h"
#include "flatquant/eval/tasks/task.h"
#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {

// What became of one item: what a log of samples shows.
struct TaskSample {
  const TaskRule* rule = nullptr;
  int64_t index = 0;  // from 0, in the order of the file
  const TaskItem* item = nullptr;
  std::span<const LikelihoodScore> scores;  // one per choice
  size_t choice = 0;                        // the likeliest
  size_t normalized_choice = 0;             // the likeliest per character, with acc_norm
  bool acc = false;
  bool acc_norm = false;
};

// Judges one item's scores by its task's rule. Of equal choices the first counts.
TaskSample JudgeItem(const TaskRule& rule, const TaskItem& item,
                     std::span<const LikelihoodScore> scores);

// A task's items, tokenized: what costs little and may fail comes before what costs
// much.
struct PreparedTask {
  const TaskRule* rule = nullptr;
  std::vector<TaskItem> items;
  std::vector<LikelihoodGroup> groups;  // one per item
  int64_t tokens = 0;                   // of contexts and continuations
};

// max_positions: of the model. Errors: eval.context for an item that does not fit
// the model's context, naming it; EncodePair's.
PreparedTask PrepareTask(const TaskRule& rule, std::vector<TaskItem> items,
                         const Tokenizer& tokenizer, BosRule bos, int64_t max_positions);

// The task's figures: acc, then acc_norm or perplexity where it has one. Shows
// progress with an ETA on stderr; on_sample, where given, sees every item in order.
// Errors: eval.not_finite, naming the item; the scorer's.
std::vector<EvalResult> EvaluateTask(const PreparedTask& task, LikelihoodScorer& scorer,
                                     const std::function<void(const TaskSample&)>& on_sample = {});

// Which results an average of tasks takes: per task acc_norm where it has that, acc
// elsewhere. Indices, in order; what is no accuracy is left out.
std::vector<size_t> AveragedResults(std::span<const EvalResult> results);

// The mean over tasks of the figure that the FlatQuant paper takes of each
// (AveragedResults); of fewer than two tasks there is no average. The error takes
// the tasks as independent.
std::vector<EvalResult> TaskAverage(std::span<const EvalResult> results);

// One item as a JSON object on one line, without a line end: task, index, where,
// arguments (context and continuation of each choice), resps (log-likelihood and
// greedy of each), target, choice, acc, and choice_norm, acc_norm where the task has it.
std::string SampleJson(const TaskSample& sample);

}  // namespace flatquant
