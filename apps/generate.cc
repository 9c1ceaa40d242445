// flatquant generate: continues a prompt, streaming to stdout. Option names are
// those of llama.cpp.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/data/text_file.h"
#include "flatquant/runtime/generate.h"
#include "flatquant/tokenizer/tokenizer.h"

namespace flatquant {
namespace {

struct GenerateArguments {
  std::string directory;
  std::string prompt;
  std::string prompt_file;
  int64_t tokens = 128;
  int64_t context = 0;
  bool ignore_eos = false;
  bool no_display_prompt = false;
  SamplerOptions sampler{.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .seed = 0};
  EngineOptions engine;
  std::string json;
};

std::string_view StopName(GenerateResult::Stop stop) {
  switch (stop) {
    case GenerateResult::Stop::kMaxTokens:
      return "length";
    case GenerateResult::Stop::kEos:
      return "eos";
    case GenerateResult::Stop::kCapacity:
      return "context";
    case GenerateResult::Stop::kCallback:
      return "output";
  }
  return "";
}

// Tokens that prompt and continuation may take together.
int64_t Capacity(const GenerateArguments& arguments, int64_t prompt, int64_t max_positions) {
  const int64_t context =
      arguments.context > 0 ? std::min(arguments.context, max_positions) : max_positions;
  if (prompt >= context) {
    throw Error("generate.prompt_too_long", "the prompt",
                "has " + std::to_string(prompt) + " tokens, but the context holds " +
                    std::to_string(context) + ", the answer included",
                "use a shorter prompt or a model with a longer context");
  }
  return arguments.tokens < 0 ? context : std::min(context, prompt + arguments.tokens);
}

double PerSecond(size_t tokens, double seconds) {
  return seconds > 0 ? static_cast<double>(tokens) / seconds : 0;
}

void Run(const GenerateArguments& arguments) {
  const Report report(arguments.json);
  CheckModelDirectory(arguments.directory);
  const std::string prompt =
      arguments.prompt_file.empty() ? arguments.prompt : ReadTextFile(arguments.prompt_file);
  const auto tokenizer = Tokenizer::Open(arguments.directory);
  const std::vector<int32_t> ids = tokenizer->Encode(prompt, /*add_special=*/true);
  const ModelConfig config = ModelConfig::Open(arguments.directory);
  const int64_t capacity =
      Capacity(arguments, static_cast<int64_t>(ids.size()), config.max_positions);
  const auto engine = Engine::Open(arguments.directory, arguments.engine);

  const bool stream = report.human();
  const auto show = [&](std::string_view text) {
    if (!stream) return true;
    const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size();
    return std::fflush(stdout) == 0 && written;
  };
  if (!arguments.no_display_prompt) show(prompt);

  // A word-initial space of SentencePiece depends on what stands before it, so
  // the stream starts with the prompt's tokens, whose text is not shown again.
  StreamDecoder decoder(*tokenizer);
  for (int32_t id : ids) decoder.Push(id);

  std::string text;
  Sequence sequence(*engine, capacity);
  const GenerateOptions options{.max_tokens = capacity - static_cast<int64_t>(ids.size()),
                                .stop_at_eos = !arguments.ignore_eos,
                                .sampler = arguments.sampler};
  const GenerateResult result = Generate(*engine, sequence, ids, options, [&](int32_t id) {
    const std::string part = decoder.Push(id);
    text += part;
    return show(part);
  });
  const std::string rest = decoder.Finish();
  text += rest;
  show(rest + "\n");

  const double prefill = PerSecond(ids.size(), result.prefill_seconds);
  const double decode = PerSecond(result.tokens.size(), result.decode_seconds);
  Log(fmt::format(
      "prompt {} tokens at {:.1f} tokens/s, generated {} at {:.1f} tokens/s, stopped: {}",
      ids.size(), prefill, result.tokens.size(), decode, StopName(result.stop)));
  if (!report.wants_json()) return;
  const nlohmann::ordered_json json = {{"prompt", prompt},
                                       {"text", text},
                                       {"ids", result.tokens},
                                       {"stop", StopName(result.stop)},
                                       {"prompt_tokens", ids.size()},
                                       {"prompt_tokens_per_second", prefill},
                                       {"tokens_per_second", decode}};
  report.WriteJson(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace

Work SetUpGenerate(CLI::App& command) {
  auto arguments = std::make_shared<GenerateArguments>();
  GenerateArguments& a = *arguments;
  AddModelDirectory(command, "DIR", "Model directory, packed or plain", &a.directory);
  command.add_option("-p,--prompt", a.prompt, "The text to continue")->type_name("TEXT");
  command.add_option("-f,--file", a.prompt_file, "Read the text to continue from a file")
      ->type_name("FILE")
      ->excludes("--prompt");
  command
      .add_option("-n,--n-predict", a.tokens, "Tokens to generate; -1: until the context is full")
      ->check(Bounds(int64_t{-1}, int64_t{1} << 40))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("-c,--ctx-size", a.context, "Context in tokens; 0: the model's")
      ->check(Bounds(int64_t{0}, int64_t{1} << 40))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--temp", a.sampler.temperature, "Temperature; 0 always takes the likeliest")
      ->check(Bounds(0.0f, 100.0f))
      ->type_name("T")
      ->capture_default_str();
  command.add_option("--top-k", a.sampler.top_k, "Only the K likeliest tokens; 0: all")
      ->check(Bounds(0, 1 << 30))
      ->type_name("K")
      ->capture_default_str();
  command
      .add_option("--top-p", a.sampler.top_p,
                  "Only the likeliest tokens that have probability P together; 1: all")
      ->check(Bounds(0.0f, 1.0f))
      ->type_name("P")
      ->capture_default_str();
  command.add_option("-s,--seed", a.sampler.seed, "The same seed gives the same text")
      ->type_name("N")
      ->capture_default_str();
  command.add_flag("--ignore-eos", a.ignore_eos, "Do not stop at the end-of-text token");
  command.add_flag("--no-display-prompt", a.no_display_prompt, "Print only what is generated");
  AddThreads(command, &a.engine.threads);
  AddPrecision(command, &a.engine.precision);
  AddDevice(command, &a.engine.device);
  AddJson(command, &a.json);
  command.footer(
      "Speed is reported on stderr.\n"
      "\n"
      "Examples:\n"
      "  flatquant generate demo-4bit -p \"The history of the city\" -n 96\n"
      "  flatquant generate demo-4bit -p \"Once\" --temp 0\n"
      "  flatquant generate models/demo-7m -f prompt.txt -n -1 --seed 7 --json out.json");
  command.callback([&command] {
    if (command.count("--prompt") + command.count("--file") == 0) {
      throw CLI::RequiredError("--prompt or --file");
    }
  });
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
