#include "flatquant/eval/task_evaluation.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"

namespace flatquant {
namespace {

// Items are scored in slices of about this many tokens: some full passes of the
// engine, so that the last one, which is seldom full, weighs little; few enough for
// their KV caches (and for progress that moves).
constexpr size_t kSliceTokens = 4096;

size_t Tokens(const LikelihoodGroup& group) {
  size_t tokens = 0;
  for (const LikelihoodRequest& request : group) {
    tokens += request.context.size() + request.continuation.size();
  }
  return tokens;
}

}  // namespace

TaskSample JudgeItem(const TaskRule& rule, const TaskItem& item,
                     std::span<const LikelihoodScore> scores) {
  FLATQUANT_CHECK(scores.size() == item.choices.size() && item.gold < scores.size());
  TaskSample sample;
  sample.rule = &rule;
  sample.item = &item;
  sample.scores = scores;
  if (rule.scoring == TaskScoring::kLastWord) {
    sample.acc = scores[0].greedy;
    return sample;
  }
  const bool normalized = rule.scoring == TaskScoring::kNormalizedChoice;
  const auto per_character = [&](size_t i) {
    return scores[i].log_likelihood / static_cast<double>(item.characters[i]);
  };
  for (size_t i = 1; i < scores.size(); ++i) {
    if (scores[i].log_likelihood > scores[sample.choice].log_likelihood) sample.choice = i;
    if (normalized && per_character(i) > per_character(sample.normalized_choice)) {
      sample.normalized_choice = i;
    }
  }
  sample.acc = sample.choice == item.gold;
  sample.acc_norm = normalized && sample.normalized_choice == item.gold;
  return sample;
}

PreparedTask PrepareTask(const TaskRule& rule, std::vector<TaskItem> items,
                         const Tokenizer& tokenizer, BosRule bos, int64_t max_positions) {
  PreparedTask task{&rule, std::move(items), {}, 0};
  for (const TaskItem& item : task.items) {
    LikelihoodGroup group;
    for (const TextPair& pair : item.choices) {
      group.push_back(EncodePair(tokenizer, pair.context, pair.continuation, bos, item.where));
      const size_t length = group.back().context.size() + group.back().continuation.size();
      // The last token is predicted, not read.
      if (length > static_cast<size_t>(max_positions) + 1) {
        throw Error("eval.context", item.where,
                    "has " + std::to_string(length) + " tokens, more than the model's context of " +
                        std::to_string(max_positions),
                    "leave the item out");
      }
    }
    task.tokens += static_cast<int64_t>(Tokens(group));
    task.groups.push_back(std::move(group));
  }
  return task;
}

std::vector<EvalResult> EvaluateTask(const PreparedTask& task, LikelihoodScorer& scorer,
                                     const std::function<void(const TaskSample&)>& on_sample) {
  FLATQUANT_CHECK(!task.items.empty());
  const auto start = std::chrono::steady_clock::now();
  const TaskRule& rule = *task.rule;
  const bool normalized = rule.scoring == TaskScoring::kNormalizedChoice;
  const bool last_word = rule.scoring == TaskScoring::kLastWord;
  Progress progress(std::string(rule.name), static_cast<uint64_t>(task.tokens));
  std::vector<float> acc, acc_norm, nll;
  double correct = 0;
  for (size_t begin = 0; begin < task.groups.size();) {
    size_t end = begin, tokens = 0;
    while (end < task.groups.size() && (end == begin || tokens < kSliceTokens)) {
      tokens += Tokens(task.groups[end++]);
    }
    const auto scores = scorer.Score(std::span(task.groups).subspan(begin, end - begin));
    FLATQUANT_CHECK(scores.size() == end - begin);
    for (size_t i = begin; i < end; ++i) {
      for (const LikelihoodScore& score : scores[i - begin]) {
        if (std::isfinite(score.log_likelihood)) continue;
        throw Error("eval.not_finite", task.items[i].where, "the model's output is not finite",
                    "its weights may be damaged or overflow; try --precision f32");
      }
      TaskSample sample = JudgeItem(rule, task.items[i], scores[i - begin]);
      sample.index = static_cast<int64_t>(i);
      acc.push_back(sample.acc ? 1.0f : 0.0f);
      if (normalized) acc_norm.push_back(sample.acc_norm ? 1.0f : 0.0f);
      if (last_word) nll.push_back(static_cast<float>(-sample.scores[0].log_likelihood));
      correct += normalized ? acc_norm.back() : acc.back();
      if (on_sample) on_sample(sample);
    }
    begin = end;
    char note[48];
    std::snprintf(note, sizeof(note), "%s %.2f %%", normalized ? "acc_norm" : "acc",
                  100 * correct / static_cast<double>(end));
    progress.Advance(tokens, note);
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  using Kind = EvalResult::Kind;
  const std::string name(rule.name);
  std::vector<EvalResult> results;
  results.push_back(EvalResult::FromSamples(name, "acc", Kind::kAccuracy, std::move(acc)));
  if (normalized) {
    results.push_back(
        EvalResult::FromSamples(name, "acc_norm", Kind::kAccuracy, std::move(acc_norm)));
  }
  if (last_word) {
    results.push_back(
        EvalResult::FromSamples(name, "perplexity", Kind::kPerplexity, std::move(nll)));
  }
  for (EvalResult& result : results) {
    result.items = static_cast<int64_t>(task.items.size());
    result.tokens = task.tokens;
    result.seconds = elapsed.count();
  }
  return results;
}

std::vector<size_t> AveragedResults(std::span<const EvalResult> results) {
  std::vector<size_t> chosen;
  for (size_t i = 0; i < results.size(); ++i) {
    if (results[i].kind != EvalResult::Kind::kAccuracy) continue;
    if (chosen.empty() || results[chosen.back()].name != results[i].name) {
      chosen.push_back(i);
    } else if (results[i].metric == "acc_norm") {
      chosen.back() = i;
    }
  }
  return chosen;
}

std::vector<EvalResult> TaskAverage(std::span<const EvalResult> results) {
  const std::vector<size_t> chosen = AveragedResults(results);
  if (chosen.size() < 2) return {};
  EvalResult average;
  average.name = "average";
  average.metric = std::to_string(chosen.size()) + " tasks";
  average.kind = EvalResult::Kind::kAverage;
  double variance = 0;
  for (size_t i : chosen) {
    average.value += results[i].value;
    variance += results[i].error * results[i].error;
    average.items += results[i].items;
    average.tokens += results[i].tokens;
    average.seconds += results[i].seconds;
  }
  const double n = static_cast<double>(chosen.size());
  average.value /= n;
  average.error = std::sqrt(variance) / n;
  return {average};
}

std::string SampleJson(const TaskSample& sample) {
  using Json = nlohmann::ordered_json;
  Json arguments = Json::array(), responses = Json::array();
  for (const TextPair& pair : sample.item->choices) {
    arguments.push_back({pair.context, pair.continuation});
  }
  for (const LikelihoodScore& score : sample.scores) {
    responses.push_back(Json::array({score.log_likelihood, score.greedy}));
  }
  Json json = {{"task", sample.rule->name},     {"index", sample.index},
               {"where", sample.item->where},   {"arguments", std::move(arguments)},
               {"resps", std::move(responses)}, {"target", sample.item->gold},
               {"choice", sample.choice},       {"acc", sample.acc ? 1 : 0}};
  if (sample.rule->scoring == TaskScoring::kNormalizedChoice) {
    json["choice_norm"] = sample.normalized_choice;
    json["acc_norm"] = sample.acc_norm ? 1 : 0;
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace flatquant
