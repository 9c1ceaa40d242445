// flatquant compare: methods side by side on one model.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "apps/compare/compare_run.h"
#include "apps/compare/rows.h"
#include "apps/options.h"
#include "apps/quantize_options.h"

namespace flatquant {
namespace {

void AddRows(CLI::App& command, CompareArguments& a) {
  command
      .add_option("--methods", a.methods,
                  fmt::format("Rows of the table: gptq (GPTQ without transforms), {}",
                              fmt::join(MethodNames(), ", ")))
      ->required()
      ->type_name("NAME[,NAME]");
  command
      .add_option("--weights", a.weights,
                  "How codes are chosen, a row for each: rtn, gptq, learned")
      ->type_name("NAME[,NAME]")
      ->check([](const std::string& text) -> std::string {
        try {
          for (const std::string& name : SplitNames("--weights", text)) WeightsOf(name);
        } catch (const std::exception&) {
          return fmt::format("{}: give one or more of {}", text, fmt::join(WeightsNames(), ", "));
        }
        return {};
      })
      ->capture_default_str();
}

void AddEvaluation(CLI::App& command, CompareArguments& a) {
  constexpr const char* kGroup = "Evaluation";
  command.add_option("--ppl", a.evaluation.specs, "Perplexity of these data, as for 'eval'")
      ->type_name("SPEC[,SPEC]")
      ->check(CheckedBy(DataSpec::ParseList))
      ->group(kGroup);
  CLI::Option* tasks =
      command.add_option("--tasks", a.evaluation.tasks, "Zero-shot tasks, as for 'eval'")
          ->type_name("NAME[,NAME]")
          ->check(CheckedBy(ParseTaskList))
          ->group(kGroup);
  tasks->needs(
      command
          .add_option("--tasks-dir", a.evaluation.tasks_dir, "Folder of the tasks' release files")
          ->type_name("DIR")
          ->group(kGroup));
  command
      .add_option("--limit", a.evaluation.limit, "Only the first N windows or items of each [all]")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 40))
      ->group(kGroup);
}

}  // namespace

Work SetUpCompare(CLI::App& command) {
  auto arguments = std::make_shared<CompareArguments>();
  CompareArguments& a = *arguments;
  AddModelDirectory(command, "MODEL_DIR", "Hugging Face model directory", &a.directory);
  command.add_option("-o,--out", a.out, "Folder for all models and results")
      ->required()
      ->type_name("OUT_DIR");
  AddRows(command, a);
  AddPreset(command, &a.settings.options);
  AddGrids(command, &a.settings);
  static const std::map<std::string, TableFormat> kFormats = {
      {"md", TableFormat::kMarkdown}, {"csv", TableFormat::kCsv}, {"json", TableFormat::kJson}};
  command
      .add_option_function<std::string>(
          "--format", [&a](const std::string& name) { a.format = kFormats.at(name); },
          "Of the table on stdout [md]")
      ->check(OneOf(kFormats))
      ->type_name("md|csv|json");
  AddEvaluation(command, a);
  AddWeightTuning(command, &a.settings);
  AddCalibration(command, &a.settings);
  AddThreads(command, &a.settings.options.threads);
  AddJson(command, &a.json);
  command.footer(
      "OUT_DIR keeps every model and result: the same command goes on where it was\n"
      "interrupted, more --ppl or --methods add to what is there. A model made with\n"
      "other options is refused. --seqlen is that of calibration and evaluation. A\n"
      "method that fails says so in its row, and the exit status is 1.\n"
      "\n"
      "Examples:\n"
      "  flatquant compare models/demo-7m -o compared --methods rtn,gptq,quarot,flatquant \\\n"
      "      --weights rtn,gptq --calib jsonl:models/demo-7m/selfgen-calib.jsonl \\\n"
      "      --seqlen 512 --nsamples 16 --ppl jsonl:models/demo-7m/selfgen-eval.jsonl\n"
      "  flatquant compare MODEL -o compared --methods rtn,quarot --ppl wikitext2:FILE "
      "--format csv");
  command.callback([&command, arguments] {
    if (command.count("--ppl") + command.count("--tasks") == 0) {
      throw CLI::RequiredError("--ppl or --tasks");
    }
    arguments->evaluation.engine.threads = arguments->settings.options.threads;
  });
  return [arguments] { RunCompare(*arguments); };
}

}  // namespace flatquant
