#include "apps/compare/row_evaluation.h"

#include <memory>
#include <optional>
#include <span>
#include <utility>

#include "flatquant/data/lazy_tokenizer.h"
#include "flatquant/eval/engine_scorer.h"
#include "flatquant/eval/perplexity.h"
#include "flatquant/eval/perplexity_state.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

void Add(const std::vector<int32_t>& ids, Fingerprint* fingerprint) {
  fingerprint->Add(std::as_bytes(std::span(ids)));
}

uint64_t FingerprintOf(const PreparedTask& task) {
  Fingerprint fingerprint;
  fingerprint.Add(std::as_bytes(std::span(task.rule->name)));
  for (const LikelihoodGroup& group : task.groups) {
    for (const LikelihoodRequest& request : group) {
      Add(request.context, &fingerprint);
      Add(request.continuation, &fingerprint);
    }
  }
  return fingerprint.value();
}

}  // namespace

RowEvaluation::RowEvaluation(const EvaluationPlan& plan, const fs::path& model,
                             const ModelConfig& config)
    : engine_(plan.engine) {
  const LazyTokenizer tokenizer(model);
  if (!plan.specs.empty()) {
    for (const DataSpec& spec : DataSpec::ParseList(plan.specs)) {
      texts_.push_back(
          ReadTextWindows(spec, tokenizer, plan.seqlen, /*stride=*/0, plan.limit, config.vocab));
      CheckContext(texts_.back(), config.max_positions);
    }
  }
  if (plan.tasks.empty()) return;
  for (const TaskRule* rule : ParseTaskList(plan.tasks)) {
    tasks_.push_back(PrepareTask(*rule, ReadTask(*rule, plan.tasks_dir, plan.limit), tokenizer,
                                 BosRule::kTokenizer, config.max_positions));
    task_fingerprints_.push_back(FingerprintOf(tasks_.back()));
  }
}

uint64_t RowEvaluation::Key(uint64_t model, uint64_t data) const {
  Fingerprint key;
  key.Add(model);
  key.Add(data);
  key.Add(static_cast<uint64_t>(engine_.precision));
  return key.value();
}

std::vector<EvalResult> RowEvaluation::Complete(const fs::path& model, const fs::path& file,
                                                RowFile* known) const {
  const uint64_t fingerprint = ModelFingerprint(model);
  std::unique_ptr<Engine> engine;
  const auto open = [&]() -> Engine& {
    if (engine == nullptr) engine = Engine::Open(model, engine_);
    return *engine;
  };
  std::vector<EvalResult> results;
  const auto take = [&](uint64_t key, const auto& measure) {
    if (!known->results.contains(key)) {
      known->results[key] = measure();
      known->Write(file);
    }
    const std::vector<EvalResult>& taken = known->results[key];
    results.insert(results.end(), taken.begin(), taken.end());
  };
  const fs::path windows = fs::path(file).replace_extension(".windows");
  for (const TextWindows& text : texts_) {
    const uint64_t key = Key(fingerprint, text.Fingerprint());
    take(key, [&] {
      PerplexityState state(windows);
      EvalResult result = Perplexity(open(), text, &state, key);
      result.samples.clear();
      return std::vector<EvalResult>{std::move(result)};
    });
  }
  for (size_t i = 0; i < tasks_.size(); ++i) {
    take(Key(fingerprint, task_fingerprints_[i]), [&] {
      EngineScorer scorer(open());
      return EvaluateTask(tasks_[i], scorer);
    });
  }
  std::error_code ignored;  // one that stays costs space, nothing else
  fs::remove(windows, ignored);
  for (EvalResult& average : TaskAverage(results)) results.push_back(std::move(average));
  return results;
}

}  // namespace flatquant
