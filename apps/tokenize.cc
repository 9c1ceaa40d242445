// flatquant tokenize: text to ids, and back.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/data/text_file.h"
#include "flatquant/data/text_sources.h"
#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {
namespace {

struct TokenizeArguments {
  std::string directory;
  std::string prompt;
  std::string jsonl;
  bool no_special = false;
};

void Run(const TokenizeArguments& arguments) {
  const Report report("");
  CheckModelDirectory(arguments.directory);
  const auto tokenizer = Tokenizer::Open(arguments.directory);
  if (arguments.jsonl.empty()) {
    const auto ids = tokenizer->Encode(arguments.prompt, !arguments.no_special);
    report.Line("[{}]", fmt::join(ids, ", "));
    return;
  }
  const std::string text = ReadTextFile(arguments.jsonl);
  for (const std::string& document : JsonDocuments(text, arguments.jsonl)) {
    const std::vector<int32_t> ids = tokenizer->Encode(document, !arguments.no_special);
    const nlohmann::ordered_json line = {
        {"ids", ids}, {"decoded", tokenizer->Decode(ids, /*skip_special=*/false)}};
    report.Line("{}", line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
  }
}

}  // namespace

Work SetUpTokenize(CLI::App& command) {
  auto arguments = std::make_shared<TokenizeArguments>();
  AddModelDirectory(command, "DIR", "Directory with the tokenizer's files", &arguments->directory);
  command.add_option("-p,--prompt", arguments->prompt, "Print this text's ids as a JSON list")
      ->type_name("TEXT");
  command
      .add_option("--jsonl", arguments->jsonl,
                  "Read lines {\"text\": ...}, print lines {\"ids\": [...], \"decoded\": ...}")
      ->type_name("FILE")
      ->excludes("--prompt");
  command.add_flag("--no-special", arguments->no_special,
                   "Add no special tokens (those spelled out in the text still count)");
  command.footer(
      "Reads tokenizer.json, tokenizer.model or vocab.json + merges.txt.\n"
      "\n"
      "Examples:\n"
      "  flatquant tokenize models/demo-7m -p \"Hello, world!\"\n"
      "  flatquant tokenize models/demo-7m --jsonl texts.jsonl.gz --no-special");
  command.callback([&command] {
    if (command.count("--prompt") + command.count("--jsonl") == 0) {
      throw CLI::RequiredError("--prompt or --jsonl");
    }
  });
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
