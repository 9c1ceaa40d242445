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

void RowEvaluation::Complete(const fs::path& model, const fs::path& file, RowFile* known) const {
  const uint64_t fingerprint = ModelFingerprint(model);
  std::unique_ptr<Engine> engine;
  const auto open = [&]() -> Engine& {
    if (engine == nullptr) engine = Engine::Open(model, engine_);
    return *engine;
  };
  const fs::path windows = fs::path(file).replace_extension(".windows");
  for (const TextWindows& text : texts_) {
    const uint64_t key = Key(fingerprint, text.Fingerprint());
    if (known->results.contains(key)) continue;
    PerplexityState state(windows);
    EvalResult result = Perplexity(open(), text, &state, key);
    result.samples.clear();
    known->results[key] = {std::move(result)};
    known->Write(file);
  }
  for (size_t i = 0; i < tasks_.size(); ++i) {
    const uint64_t key = Key(fingerprint, task_fingerprints_[i]);
    if (known->results.contains(key)) continue;
    EngineScorer scorer(open());
    known->results[key] = EvaluateTask(tasks_[i], scorer);
    known->Write(file);
  }
  std::error_code ignored;  // one that stays costs space, nothing else
  fs::remove(windows, ignored);
}

std::vector<EvalResult> RowEvaluation::Results(const fs::path& model, const RowFile& known) const {
  const uint64_t fingerprint = ModelFingerprint(model);
  std::vector<EvalResult> results;
  const auto take = [&](uint64_t data) {
    const auto found = known.results.find(Key(fingerprint, data));
    if (found == known.results.end()) return false;
    results.insert(results.end(), found->second.begin(), found->second.end());
    return true;
  };
  for (const TextWindows& text : texts_) {
    if (!take(text.Fingerprint())) return {};
  }
  for (const uint64_t task : task_fingerprints_) {
    if (!take(task)) return {};
  }
  for (EvalResult& average : TaskAverage(results)) results.push_back(std::move(average));
  return results;
}

}  // namespace flatquant
