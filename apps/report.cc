// flatquant report: what is known of a packed model, on one page.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/report/report_page.h"
#include "flatquant/runtime/generate.h"
#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {
namespace {

struct ReportArguments {
  std::string directory;
  std::string out;
  std::vector<std::string> results;
  std::string base;
  std::vector<std::string> prompts;
  int64_t tokens = 64;
  bool no_plots = false;
  EngineOptions engine;
};

ReportData::Results ReadResults(const std::string& path) {
  nlohmann::json json = nlohmann::json::parse(ReadFile(path), nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    throw Error("report.bad_results", path, "is not a JSON object",
                "name files that commands wrote with --json");
  }
  return {std::filesystem::path(path).filename().string(), std::move(json)};
}

// What 'quantize' left in the model's folder, unless the command line names such a file.
void AddOwnReport(const std::string& directory, std::vector<ReportData::Results>* results) {
  const std::filesystem::path file = std::filesystem::path(directory) / "report.json";
  const bool named = std::any_of(results->begin(), results->end(),
                                 [](const auto& given) { return given.json.contains("blocks"); });
  if (!named && std::filesystem::exists(file)) results->push_back(ReadResults(file.string()));
}

// The greedy continuation of each prompt.
std::vector<std::string> Continue(const std::string& directory, const ReportArguments& arguments) {
  const auto tokenizer = Tokenizer::Open(directory);
  const auto engine = Engine::Open(directory, arguments.engine);
  std::vector<std::string> texts;
  for (const std::string& prompt : arguments.prompts) {
    const std::vector<int32_t> ids = tokenizer->Encode(prompt, /*add_special=*/true);
    const int64_t capacity = std::min(engine->config().max_positions,
                                      static_cast<int64_t>(ids.size()) + arguments.tokens);
    Sequence sequence(*engine, std::max<int64_t>(capacity, 1));
    const GenerateResult result =
        Generate(*engine, sequence, ids, {.max_tokens = arguments.tokens});
    // Its text as it stands after the prompt's.
    StreamDecoder decoder(*tokenizer);
    for (int32_t id : ids) decoder.Push(id);
    std::string text;
    for (int32_t id : result.tokens) text += decoder.Push(id);
    texts.push_back(text + decoder.Finish());
  }
  return texts;
}

void Run(const ReportArguments& arguments) {
  CheckModelDirectory(arguments.directory);
  if (!arguments.base.empty()) CheckModelDirectory(arguments.base);
  CheckCanCreate(arguments.out);
  const PackedModel model = ReadPackedModel(arguments.directory);
  ReportData data;
  data.title =
      std::filesystem::absolute(arguments.directory).lexically_normal().filename().string();
  data.model = &model;
  data.plots = !arguments.no_plots;
  for (const std::string& path : arguments.results) data.results.push_back(ReadResults(path));
  AddOwnReport(arguments.directory, &data.results);
  if (!arguments.prompts.empty()) {
    const std::vector<std::string> quantized = Continue(arguments.directory, arguments);
    std::vector<std::string> base(quantized.size());
    if (!arguments.base.empty()) base = Continue(arguments.base, arguments);
    for (size_t i = 0; i < quantized.size(); ++i) {
      data.samples.push_back({arguments.prompts[i], base[i], quantized[i]});
    }
  }
  const std::string page = ReportPage(data);
  AtomicFile file(arguments.out);
  file.Write(page);
  file.Commit();
  Log(fmt::format("wrote {}", arguments.out));
}

}  // namespace

Work SetUpReport(CLI::App& command) {
  auto arguments = std::make_shared<ReportArguments>();
  ReportArguments& a = *arguments;
  AddModelDirectory(command, "OUT_DIR", "Packed model", &a.directory);
  command.add_option("-o,--out", a.out, "The page to write")->required()->type_name("FILE.html");
  command
      .add_option("--results", a.results,
                  "What 'eval', 'flatness' and 'quantize' wrote with --json; may be given often")
      ->type_name("FILE")
      ->allow_extra_args(false);
  command.add_option("-p,--prompt", a.prompts, "A text to continue; may be given often")
      ->type_name("TEXT")
      ->allow_extra_args(false);
  command.add_option("--base", a.base, "The model it was made from, whose continuations go beside")
      ->type_name("DIR")
      ->needs("--prompt");
  command.add_option("-n,--tokens", a.tokens, "New tokens of a continuation at most")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 20))
      ->capture_default_str();
  command.add_flag("--no-plots", a.no_plots, "Tables only; plots need gnuplot");
  AddThreads(command, &a.engine.threads);
  AddPrecision(command, &a.engine.precision);
  AddDevice(command, &a.engine.device);
  command.footer(
      "The page needs no network and no other file, and has every figure as JSON in it.\n"
      "OUT_DIR/report.json, which 'quantize' writes, is taken up by itself.\n"
      "\n"
      "Examples:\n"
      "  flatquant report demo-4bit -o report.html\n"
      "  flatquant report demo-4bit -o report.html --results eval.json --results flatness.json \\\n"
      "      --base models/demo-7m -p \"The history of the city\"");
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
