#include "apps/compare/compare_run.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <exception>
#include <filesystem>
#include <optional>
#include <vector>

#include "apps/compare/row_file.h"
#include "apps/compare/rows.h"
#include "apps/console.h"
#include "apps/model_files.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/compress/job/stop_signal.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/transforms_file.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

constexpr const char* kSourceName = "source";

double SecondsSince(Clock::time_point start) {
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Comparison {
 public:
  Comparison(const CompareArguments& arguments, const QuantizeSettings& settings,
             const SourceModel& model, std::vector<CompareRow> rows)
      : arguments_(arguments),
        settings_(settings),
        model_(model),
        rows_(std::move(rows)),
        out_(arguments.out) {
    if (!settings.calib.empty()) {
      calibration_ = ReadCalibration(settings, arguments.directory, model.config());
    }
    for (const CompareRow& row : rows_) CheckKept(row);
    EvaluationPlan plan = arguments.evaluation;
    plan.seqlen = settings.options.seqlen;
    evaluation_.emplace(plan, arguments.directory, model.config());
  }

  std::vector<TableRow> Run() {
    std::vector<TableRow> table = {Source()};
    const Clock::time_point start = Clock::now();
    for (size_t i = 0; i < rows_.size(); ++i) {
      Log(fmt::format("row {} of {}: {}", i + 1, rows_.size(), rows_[i].Folder()));
      table.push_back(Row(rows_[i]));
      if (i + 1 == rows_.size()) break;
      const double seconds = SecondsSince(start);
      const double left =
          seconds / static_cast<double>(i + 1) * static_cast<double>(rows_.size() - i - 1);
      Log(fmt::format("{} of {} rows in {}, about {} left", i + 1, rows_.size(),
                      FormatDuration(seconds), FormatDuration(left)));
    }
    return table;
  }

 private:
  fs::path Folder(const CompareRow& row) const { return out_ / row.Folder(); }
  fs::path RecordOf(const std::string& name) const { return out_ / (name + ".json"); }

  QuantizeOptions OptionsOf(const CompareRow& row) const {
    QuantizeOptions options = settings_.options;
    options.method = row.method;
    options.weights = WeightsOf(row.weights);
    return options;
  }

  const TokenWindows* calibration() const { return calibration_ ? &*calibration_ : nullptr; }

  // What decides the bytes of a row's model.
  std::vector<std::pair<std::string, std::string>> SettingsOf(const CompareRow& row) const {
    auto settings = QuantizeDecisions(model_, OptionsOf(row), calibration());
    settings.emplace_back("--lm-head", std::to_string(settings_.lm_head_bits));
    return settings;
  }

  // A model that is there counts as this row's only where the same settings made it.
  void CheckKept(const CompareRow& row) const {
    const auto settings = SettingsOf(row);  // what is wrong with them shows before any work
    if (!IsPackedDirectory(Folder(row))) return CheckPackedDestination(Folder(row));
    const RowFile record = RowFile::Read(RecordOf(row.Folder()));
    const std::string differences = SettingDifferences(record.settings, settings);
    if (differences.empty()) return;
    throw Error("compare.changed", Folder(row).string(),
                "was made with other settings: " + differences,
                "give the earlier settings to go on, remove it, or choose another -o");
  }

  TableRow Source() const {
    TableRow line;
    line.method = "-";
    line.weights = "-";
    line.directory = arguments_.directory;
    line.bytes = WeightFileBytes(arguments_.directory);
    line.results = Measure(arguments_.directory, RecordOf(kSourceName));
    return line;
  }

  std::vector<EvalResult> Measure(const fs::path& model, const fs::path& record) const {
    RowFile known = RowFile::Read(record);
    return evaluation_->Complete(model, record, &known);
  }

  // A row that fails leaves the others alone.
  TableRow Row(const CompareRow& row) {
    TableRow line;
    line.method = row.Name();
    line.weights = settings_.options.scheme.weight_bits < 16 ? row.weights : "-";
    line.directory = Folder(row).string();
    try {
      Make(row);
      const RowFile record = RowFile::Read(RecordOf(row.Folder()));
      line.quantize_seconds = record.quantize_seconds;
      line.transforms_from = record.transforms_from;
      line.bits = BitsOf(ReadPackedModel(Folder(row)));
      line.bytes = WeightFileBytes(Folder(row));
      line.results = Measure(Folder(row), RecordOf(row.Folder()));
    } catch (const Error& error) {
      line.failure_name = error.name();
      line.failure = error.what();
    } catch (const std::bad_alloc&) {
      line.failure_name = "system.out_of_memory";
      line.failure = "out of memory [system.out_of_memory]";
    } catch (const std::exception& error) {
      line.failure_name = "system.unexpected";
      line.failure = error.what();
    }
    if (!line.failure.empty()) Log(row.Folder() + " failed: " + line.failure);
    return line;
  }

  // The packed model of a row, where it is not there yet.
  void Make(const CompareRow& row) {
    if (IsPackedDirectory(Folder(row))) return;
    const Clock::time_point start = Clock::now();
    RowFile record;
    record.settings = SettingsOf(row);
    QuantizeOptions options = OptionsOf(row);
    if (const CompareRow* donor = Donor(row)) {
      record.transforms_from = donor->Folder();
      options.transforms = TransformsFile(Folder(*donor));
    }
    options.job = JobOptions{};
    options.job->directory = JobDirectoryFor(Folder(row));
    {
      PackedModel packed = calibration_ ? Quantize(model_, options, *calibration_, nullptr)
                                        : Quantize(model_, options, nullptr);
      if (settings_.lm_head_bits < 16) {
        QuantizeHead(settings_.lm_head_bits, kHeadActBits, &packed);
      }
      // The record first: a model without one counts as nobody's.
      record.quantize_seconds = SecondsSince(start);
      record.Write(RecordOf(row.Folder()));
      WritePackedModel(packed, arguments_.directory, Folder(row));
    }
    RemoveJob(options.job->directory);
  }

  // An earlier row of the same method, whose transforms are those of this row too: rtn
  // and gptq choose codes for the same folded weights. Not where a block's transforms
  // depend on the codes of the blocks before it, nor with learned weights, which are
  // trained together with them.
  const CompareRow* Donor(const CompareRow& row) const {
    if (settings_.options.stream == QuantizeOptions::Stream::kQuantized) return nullptr;
    for (const CompareRow& other : rows_) {
      if (other == row) break;
      const bool fits =
          other.method == row.method && other.weights != "learned" && row.weights != "learned";
      std::error_code ignored;
      if (fits && IsPackedDirectory(Folder(other)) &&
          fs::exists(TransformsFile(Folder(other)), ignored)) {
        return &other;
      }
    }
    return nullptr;
  }

  const CompareArguments& arguments_;
  const QuantizeSettings& settings_;
  const SourceModel& model_;
  const std::vector<CompareRow> rows_;
  const fs::path out_;
  std::optional<TokenWindows> calibration_;
  std::optional<RowEvaluation> evaluation_;
};

}  // namespace

void RunCompare(const CompareArguments& arguments) {
  const Report report(arguments.json);
  CheckModelDirectory(arguments.directory);
  CheckCanCreate(fs::path(arguments.out) / "");
  std::error_code ignored;
  if (IsPackedDirectory(arguments.out)) {
    throw Error("compare.not_ours", arguments.out, "is a packed model",
                "name a folder for all models of the comparison");
  }
  const SourceModel model = SourceModel::Open(arguments.directory);
  QuantizeSettings settings = arguments.settings;
  settings.Resolve(model.config());
  std::vector<CompareRow> rows =
      CompareRows(SplitNames("--methods", arguments.methods),
                  SplitNames("--weights", arguments.weights), settings.options.scheme);
  Comparison comparison(arguments, settings, model, std::move(rows));
  const ExitOnSignals exit_on_signals(
      fmt::format("flatquant: stopped; what is finished is kept in {}: the same command goes on",
                  Printable(arguments.out)));
  fs::create_directories(arguments.out, ignored);  // CheckCanCreate has tried it
  const std::vector<TableRow> table = comparison.Run();

  report.Line("{}", FormatTable(table, arguments.format));
  std::string failed;
  for (const TableRow& row : table) {
    if (!row.failure.empty())
      failed += (failed.empty() ? "" : ", ") + row.method + " " + row.weights;
  }
  if (report.wants_json()) {
    const nlohmann::ordered_json json = {{"model", arguments.directory},
                                         {"scheme", settings.options.scheme.Name()},
                                         {"rows", TableJson(table)}};
    report.WriteJson(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  }
  if (!failed.empty()) {
    throw Error("compare.failed", failed, "failed, the other rows are complete",
                "see the messages above; run the same command again to retry");
  }
}

}  // namespace flatquant
