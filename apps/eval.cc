// flatquant eval: perplexity, tasks, divergence from a base model.

#include <CLI/CLI.hpp>
#include <map>
#include <memory>
#include <string>

#include "apps/commands.h"
#include "apps/eval_run.h"
#include "apps/options.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/eval/tasks/task.h"

namespace flatquant {
namespace {

void AddData(CLI::App& command, EvalArguments& arguments) {
  command.add_option("--ppl", arguments.specs, "Perplexity of these data, see below")
      ->type_name("SPEC[,SPEC]")
      ->check(CheckedBy(DataSpec::ParseList));
  CLI::Option* tasks =
      command
          .add_option("--tasks", arguments.tasks,
                      "Zero-shot tasks: all, arc_easy, arc_challenge, hellaswag, piqa, winogrande, "
                      "lambada_openai")
          ->type_name("NAME[,NAME]");
  CLI::Option* folder =
      command.add_option("--tasks-dir", arguments.tasks_dir, "Folder of the tasks' release files")
          ->type_name("DIR");
  tasks->needs(folder);
  command
      .add_option("--seqlen", arguments.seqlen,
                  "Tokens of a window [2048, or the model's context where that is smaller]")
      ->type_name("N")
      ->check(Bounds(int64_t{2}, int64_t{1} << 24));
  command
      .add_option("--stride", arguments.stride,
                  "Move windows on by N tokens, so that more context precedes each [--seqlen]")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 24));
  command.add_option("--limit", arguments.limit, "Only the first N windows or items of each [all]")
      ->type_name("N")
      ->check(Bounds(int64_t{1}, int64_t{1} << 40));
  static const std::map<std::string, BosRule> kBos = {
      {"auto", BosRule::kTokenizer}, {"never", BosRule::kNever}, {"always", BosRule::kAlways}};
  command
      .add_option_function<std::string>(
          "--bos", [&arguments](const std::string& name) { arguments.bos = kBos.at(name); },
          "Whether a task's text starts with BOS; auto: as the tokenizer does [auto]")
      ->check(OneOf(kBos))
      ->type_name("auto|never|always");
}

void AddComparisons(CLI::App& command, EvalArguments& arguments) {
  command
      .add_option("--vs", arguments.vs,
                  "Evaluate this model too and show what is left of each figure")
      ->type_name("DIR");
  CLI::Option* kl =
      command
          .add_option(
              "--kl-base", arguments.kl_base,
              "Divergence from this model on the --ppl data, or from a saved base on its own")
          ->type_name("DIR|FILE");
  CLI::Option* save =
      command
          .add_option("--save-base", arguments.save_base,
                      "Keep this model's predictions on the --ppl data for --kl-base FILE "
                      "(2 bytes per token and vocabulary entry)")
          ->type_name("FILE");
  CLI::Option* resume =
      command
          .add_option("--resume", arguments.resume,
                      "Keep finished perplexity windows there; go on where it was interrupted")
          ->type_name("FILE");
  kl->excludes(save);
  kl->excludes(resume);
  save->excludes(resume);
  save->needs("--ppl");
  command.add_option("--log-samples", arguments.log_samples, "Every item's outcome, as JSON lines")
      ->type_name("FILE")
      ->needs("--tasks");
}

}  // namespace

Work SetUpEval(CLI::App& command) {
  auto arguments = std::make_shared<EvalArguments>();
  AddModelDirectory(command, "DIR", "Model directory, packed or plain", &arguments->directory);
  AddData(command, *arguments);
  AddComparisons(command, *arguments);
  AddThreads(command, &arguments->engine.threads);
  AddPrecision(command, &arguments->engine.precision);
  AddDevice(command, &arguments->engine.device);
  AddJson(command, &arguments->json);
  command.footer(
      "SPEC is KIND:FILE. KIND is one of\n"
      "  wikitext2  WikiText-2 raw, as the field evaluates it\n"
      "  c4, pile   JSON lines {\"text\": ...}, joined by a space or a blank line\n"
      "  ptb        Penn Treebank\n"
      "  text       the whole file\n"
      "  jsonl      JSON lines, each document between BOS and EOS\n"
      "  ids        token ids, a .npy file of integers, 1-D or one window per row\n"
      "Text may be gzip or Zstandard. docs/evaluation.md has the rules of all figures.\n"
      "\n"
      "Examples:\n"
      "  flatquant eval demo-4bit --ppl jsonl:models/demo-7m/selfgen-eval.jsonl\n"
      "  flatquant eval demo-4bit --ppl wikitext2:wiki.test.raw --vs models/demo-7m\n"
      "  flatquant eval demo-4bit --tasks all --tasks-dir tasks --log-samples items.jsonl\n"
      "  flatquant eval demo-4bit --ppl text:book.txt --kl-base models/demo-7m --limit 16\n"
      "  flatquant eval models/demo-7m --ppl text:book.txt --seqlen 512 --json - | jq .results");
  command.callback([&command, arguments] {
    if (command.count("--ppl") + command.count("--tasks") + command.count("--kl-base") == 0) {
      throw CLI::RequiredError("--ppl, --tasks or --kl-base");
    }
    if (!arguments->save_base.empty() && DataSpec::ParseList(arguments->specs).size() != 1) {
      throw CLI::ValidationError("--save-base", "keeps one text; give --ppl one SPEC");
    }
  });
  return [arguments] { RunEval(*arguments); };
}

}  // namespace flatquant
