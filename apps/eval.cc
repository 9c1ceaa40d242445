// flatquant eval: perplexity of a packed or plain model.

#include <CLI/CLI.hpp>
#include <memory>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/base/progress.h"
#include "flatquant/data/lazy_tokenizer.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/eval/perplexity.h"
#include "flatquant/eval/result.h"
#include "flatquant/runtime/engine.h"

namespace flatquant {
namespace {

struct EvalArguments {
  std::string directory;
  std::string specs;
  int64_t seqlen = 0;
  int64_t limit = 0;
  EngineOptions engine;
  std::string json;
};

void Run(const EvalArguments& arguments) {
  const Report report(arguments.json);
  CheckModelDirectory(arguments.directory);
  const ModelConfig config = ModelConfig::Open(arguments.directory);
  const int64_t length = WindowLength(arguments.seqlen, config);
  const LazyTokenizer tokenizer(arguments.directory);

  // All data first: a bad path must not cost the time that the others take.
  const std::vector<DataSpec> specs = DataSpec::ParseList(arguments.specs);
  std::vector<TokenWindows> windows;
  for (const DataSpec& spec : specs) {
    windows.push_back(EvaluationWindows(spec, tokenizer, length, arguments.limit, config.vocab));
  }

  const auto engine = Engine::Open(arguments.directory, arguments.engine);
  std::vector<EvalResult> results;
  for (size_t i = 0; i < specs.size(); ++i) {
    results.push_back(Perplexity(*engine, windows[i], specs[i].KindName()));
    const EvalResult& result = results.back();
    report.Line("{:<10} perplexity {:.4f}   ({} windows of {} tokens, {})", result.name,
                result.value, result.windows, result.seqlen, FormatDuration(result.seconds));
  }
  report.WriteJson(ResultsJson(results));
}

}  // namespace

Work SetUpEval(CLI::App& command) {
  auto arguments = std::make_shared<EvalArguments>();
  AddModelDirectory(command, "DIR", "Model directory, packed or plain", &arguments->directory);
  command.add_option("--ppl", arguments->specs, "Perplexity of these data, see below")
      ->required()
      ->type_name("SPEC[,SPEC]")
      ->check(CheckedBy(DataSpec::ParseList));
  command
      .add_option("--seqlen", arguments->seqlen,
                  "Tokens of a window [2048, or the model's context where that is smaller]")
      ->type_name("N")
      ->check(Bounds(int64_t{2}, int64_t{1} << 24));
  command.add_option("--limit", arguments->limit, "Only the first N windows of each [all]")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 40));
  AddThreads(command, &arguments->engine.threads);
  AddPrecision(command, &arguments->engine.precision);
  AddJson(command, &arguments->json);
  command.footer(
      "SPEC is KIND:FILE. KIND is one of\n"
      "  wikitext2  WikiText-2 raw, as the field evaluates it\n"
      "  c4, pile   JSON lines {\"text\": ...}, joined by a space or a blank line\n"
      "  ptb        Penn Treebank\n"
      "  text       the whole file\n"
      "  jsonl      JSON lines, each document between BOS and EOS\n"
      "  ids        token ids, a .npy file of integers, 1-D or one window per row\n"
      "Text may be gzip or Zstandard.\n"
      "\n"
      "Examples:\n"
      "  flatquant eval demo-4bit --ppl jsonl:models/demo-7m/selfgen-eval.jsonl\n"
      "  flatquant eval demo-4bit --ppl wikitext2:wiki.test.raw,c4:c4.jsonl.gz --limit 16\n"
      "  flatquant eval models/demo-7m --ppl text:book.txt --seqlen 512 --json - | jq .results");
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
