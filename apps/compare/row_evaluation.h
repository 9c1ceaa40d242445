#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "apps/compare/row_file.h"
#include "flatquant/eval/task_evaluation.h"
#include "flatquant/eval/text_windows.h"
#include "flatquant/model/config.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {

// What every row of a comparison is measured on; the names are those of 'eval'.
struct EvaluationPlan {
  std::string specs;
  std::string tasks;
  std::string tasks_dir;
  int64_t seqlen = 0;
  int64_t limit = 0;
  EngineOptions engine;
};

// The data of a comparison, read and tokenized once for all rows.
class RowEvaluation {
 public:
  // model: whose tokenizer is used. Errors: those of the data, eval.*.
  RowEvaluation(const EvaluationPlan& plan, const std::filesystem::path& model,
                const ModelConfig& config);

  // All results of a model in the order of the table. Measures what `known` does not have
  // yet and adds it; writes `known` to `file` after each text or task. Windows of an
  // interrupted run are kept beside it.
  std::vector<EvalResult> Complete(const std::filesystem::path& model,
                                   const std::filesystem::path& file, RowFile* known) const;

 private:
  uint64_t Key(uint64_t model, uint64_t data) const;

  EngineOptions engine_;
  std::vector<TextWindows> texts_;
  std::vector<PreparedTask> tasks_;
  std::vector<uint64_t> task_fingerprints_;
};

}  // namespace flatquant
