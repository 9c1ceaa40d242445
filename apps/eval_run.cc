#include "apps/eval_run.h"

#include <chrono>
#include <memory>
#include <optional>
#include <vector>

#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/base/progress.h"
#include "flatquant/data/lazy_tokenizer.h"
#include "flatquant/eval/engine_scorer.h"
#include "flatquant/eval/kl_base_file.h"
#include "flatquant/eval/kl_divergence.h"
#include "flatquant/eval/perplexity.h"
#include "flatquant/eval/recovery.h"
#include "flatquant/eval/task_evaluation.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant {
namespace {

using Json = nlohmann::ordered_json;

// The data of an evaluation, read and tokenized.
struct EvalData {
  std::vector<TextWindows> texts;
  std::vector<PreparedTask> tasks;
};

// What a model's evaluation keeps or compares beside its figures.
struct EvalExtras {
  PerplexityState* state = nullptr;
  AtomicFile* samples = nullptr;
  const Engine* kl_base = nullptr;
  KlBaseFile* kl_file = nullptr;
  std::string save_base;
};

class Stopwatch {
 public:
  double seconds() const {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
  }

 private:
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

EvalData ReadData(const EvalArguments& arguments, const ModelConfig& config) {
  const int64_t length = WindowLength(arguments.seqlen, config);
  const LazyTokenizer tokenizer(arguments.directory);
  EvalData data;
  if (!arguments.specs.empty()) {
    for (const DataSpec& spec : DataSpec::ParseList(arguments.specs)) {
      data.texts.push_back(ReadTextWindows(spec, tokenizer, length, arguments.stride,
                                           arguments.limit, config.vocab));
    }
  }
  if (!arguments.tasks.empty()) {
    for (const TaskRule* rule : ParseTaskList(arguments.tasks)) {
      data.tasks.push_back(PrepareTask(*rule, ReadTask(*rule, arguments.tasks_dir, arguments.limit),
                                       tokenizer, arguments.bos, config.max_positions));
    }
  }
  return data;
}

// Which run of --resume a text of a model is.
uint64_t RunKey(const std::string& directory, const TextWindows& text, Precision precision) {
  Fingerprint key;
  key.Add(ModelFingerprint(directory));
  key.Add(text.Fingerprint());
  key.Add(static_cast<uint64_t>(precision));
  return key.value();
}

class Evaluation {
 public:
  Evaluation(const Report& report, const EvalArguments& arguments, const std::string& directory,
             EvalExtras extras)
      : report_(report),
        arguments_(arguments),
        directory_(directory),
        extras_(std::move(extras)),
        engine_(Engine::Open(directory, arguments.engine)) {}

  std::vector<EvalResult> Run(const EvalData& data) {
    for (const TextWindows& text : data.texts) {
      results_.push_back(Text(text));
      const EvalResult& result = results_.back();
      report_.Line("{:<14} perplexity {}   ({} windows of {} tokens, {})", result.name,
                   FormatValue(result), result.windows, result.seqlen,
                   FormatDuration(result.seconds));
    }
    EngineScorer scorer(*engine_);
    for (const PreparedTask& task : data.tasks) {
      for (EvalResult& result : EvaluateTask(task, scorer, LogTo(extras_.samples))) {
        report_.Line("{:<14} {:<10} {}   ({} items, {})", result.name, result.metric,
                     FormatValue(result), result.items, FormatDuration(result.seconds));
        results_.push_back(std::move(result));
      }
    }
    for (EvalResult& average : TaskAverage(results_)) {
      report_.Line("{:<14} {:<10} {}   (acc_norm where a task has it, else acc)", average.name,
                   average.metric, FormatValue(average));
      results_.push_back(std::move(average));
    }
    return std::move(results_);
  }

  // Of the texts that were compared with a base.
  const std::vector<KlStatistics>& divergences() const { return divergences_; }

 private:
  EvalResult Text(const TextWindows& text) {
    const Stopwatch watch;
    if (extras_.kl_base != nullptr || extras_.kl_file != nullptr) {
      std::optional<EngineLogitRows> base;
      if (extras_.kl_base != nullptr) base.emplace(*extras_.kl_base, text);
      EngineLogitRows rows(*engine_, text);
      LogitRows& base_rows =
          base ? static_cast<LogitRows&>(*base) : static_cast<LogitRows&>(*extras_.kl_file);
      const auto tokens = Diverge(text, base_rows, rows, engine_->pool());
      divergences_.push_back(Summarize(text.name, tokens));
      report_.Line("{}", FormatKl(divergences_.back()));
      std::vector<float> nll;
      for (const TokenDivergence& token : tokens) nll.push_back(token.nll);
      return PerplexityOf(text, std::move(nll), watch.seconds());
    }
    if (!extras_.save_base.empty()) {
      EngineLogitRows rows(*engine_, text);
      std::vector<float> nll = WriteKlBase(extras_.save_base, text, rows, engine_->pool());
      return PerplexityOf(text, std::move(nll), watch.seconds());
    }
    const uint64_t key =
        extras_.state == nullptr ? 0 : RunKey(directory_, text, arguments_.engine.precision);
    return Perplexity(*engine_, text, extras_.state, key);
  }

  static std::function<void(const TaskSample&)> LogTo(AtomicFile* file) {
    if (file == nullptr) return {};
    return [file](const TaskSample& sample) { file->Write(SampleJson(sample) + "\n"); };
  }

  const Report& report_;
  const EvalArguments& arguments_;
  std::string directory_;
  EvalExtras extras_;
  std::unique_ptr<Engine> engine_;
  std::vector<EvalResult> results_;
  std::vector<KlStatistics> divergences_;
};

}  // namespace

void RunEval(const EvalArguments& arguments) {
  const Report report(arguments.json);
  CheckModelDirectory(arguments.directory);
  if (!arguments.vs.empty()) CheckModelDirectory(arguments.vs);
  for (const std::string& path : {arguments.log_samples, arguments.save_base, arguments.resume}) {
    if (!path.empty()) CheckCanCreate(path);
  }
  const ModelConfig config = ModelConfig::Open(arguments.directory);
  std::optional<PerplexityState> state;
  if (!arguments.resume.empty()) state.emplace(arguments.resume);
  EvalData data = ReadData(arguments, config);

  EvalExtras extras;
  extras.state = state ? &*state : nullptr;
  extras.save_base = arguments.save_base;
  std::optional<KlBaseFile> kl_file;
  std::unique_ptr<Engine> kl_base;
  std::error_code ignored;
  if (std::filesystem::is_directory(arguments.kl_base, ignored)) {
    if (data.texts.empty()) {
      throw Error("usage.kl_base", arguments.kl_base,
                  "is a model, which needs a text to be compared on", "add --ppl SPEC");
    }
    kl_base = Engine::Open(arguments.kl_base, arguments.engine);
    extras.kl_base = kl_base.get();
  } else if (!arguments.kl_base.empty()) {
    if (!data.texts.empty()) {
      throw Error("usage.kl_base", arguments.kl_base, "is a saved base, which has its own text",
                  "leave --ppl out");
    }
    kl_file.emplace(arguments.kl_base);
    extras.kl_file = &*kl_file;
    data.texts.push_back(kl_file->text());
  }
  std::optional<AtomicFile> samples;
  if (!arguments.log_samples.empty()) {
    samples.emplace(arguments.log_samples);
    extras.samples = &*samples;
  }

  Json json;
  std::vector<EvalResult> results;
  {
    Evaluation evaluation(report, arguments, arguments.directory, extras);
    results = evaluation.Run(data);
    for (const KlStatistics& divergence : evaluation.divergences()) {
      json["kl"].push_back(KlJson(divergence));
    }
  }  // one model in memory at a time
  if (samples) samples->Commit();
  json["results"] = ResultsJson(results);
  if (!arguments.vs.empty()) {
    kl_base.reset();
    EvalExtras base_extras;
    base_extras.state = extras.state;
    report.Line("\n{}:", Printable(arguments.vs));
    Evaluation evaluation(report, arguments, arguments.vs, base_extras);
    const std::vector<EvalResult> base = evaluation.Run(data);
    const std::vector<RecoveryRow> rows = Recover(base, results);
    report.Line("\n{}", FormatRecovery(rows));
    json["base_results"] = ResultsJson(base);
    json["recovery"] = RecoveryJson(rows);
  }
  report.WriteJson(json.dump(-1, ' ', false, Json::error_handler_t::replace));
}

}  // namespace flatquant
