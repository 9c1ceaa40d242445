// The flatquant binary: finds the subcommand, runs it, and turns whatever goes
// wrong into one line on stderr and an exit status: 1 for failures, 2 for a
// command line that cannot be understood.

#include <CLI/CLI.hpp>
#include <cstdio>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "flatquant/base/error.h"

namespace flatquant {
namespace {

struct Entry {
  const char* name;
  const char* description;
  Work (*set_up)(CLI::App&);
};

constexpr Entry kEntries[] = {
    {"quantize", "Make a 4-bit model out of a Hugging Face one", SetUpQuantize},
    {"eval", "Measure a model: perplexity, tasks, divergence from its base", SetUpEval},
    {"convert", "Make a packed model out of one that the original FlatQuant quantized",
     SetUpConvert},
    {"compare", "Measure methods side by side on one model", SetUpCompare},
    {"flatness", "Show how flat methods make channels, and how errors grow", SetUpFlatness},
    {"report", "Show on one page what is known of a packed model", SetUpReport},
    {"generate", "Continue a text", SetUpGenerate},
    {"tokenize", "Turn text into token ids", SetUpTokenize},
    {"bench", "Measure speed, and compare it with what this machine can do", SetUpBench},
    {"inspect", "Show what a model, a weight file or this CPU holds", SetUpInspect},
};

constexpr const char* kExamples =
    "Examples:\n"
    "  flatquant quantize models/demo-7m -o demo-4bit --calib "
    "jsonl:models/demo-7m/selfgen-calib.jsonl\n"
    "  flatquant eval     demo-4bit --ppl jsonl:models/demo-7m/selfgen-eval.jsonl\n"
    "  flatquant generate demo-4bit -p \"The city\" -n 64\n"
    "  flatquant inspect  demo-4bit\n"
    "\n"
    "A model is a directory: a Hugging Face one or one that 'quantize' wrote.\n"
    "'flatquant COMMAND --help' explains a command and gives examples.";

void PrintError(std::string_view message) {
  std::fprintf(stderr, "flatquant: error: %s\n", Printable(message).c_str());
}

// "flatquant" or "flatquant eval": where help on a usage error is found.
std::string HelpCommand(const CLI::App& app) {
  std::string text = app.get_name();
  for (const CLI::App* chosen : app.get_subcommands()) text += " " + chosen->get_name();
  return text;
}

int Main(int argc, char** argv) {
  CLI::App app("FlatQuant 4-bit quantization and inference for LLMs", "flatquant");
  app.set_version_flag("--version", "flatquant " FLATQUANT_VERSION);
  app.require_subcommand(1);
  app.footer(kExamples);
  app.get_formatter()->column_width(32);
  std::vector<std::pair<CLI::App*, Work>> commands;
  for (const Entry& entry : kEntries) {
    CLI::App* command = app.add_subcommand(entry.name, entry.description);
    commands.emplace_back(command, entry.set_up(*command));
  }

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    if (error.get_exit_code() == static_cast<int>(CLI::ExitCodes::Success)) {
      app.exit(error);  // --help and --version print to stdout
      return std::fflush(stdout) == 0 ? 0 : 1;
    }
    PrintError(std::string(error.what()) + "; see '" + HelpCommand(app) + " --help'");
    return 2;
  }

  for (const auto& [command, work] : commands) {
    if (command->parsed()) work();
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw Error("output.not_writable", "stdout", "cannot write all results",
                "check the disk or pipe behind it");
  }
  return 0;
}

}  // namespace
}  // namespace flatquant

int main(int argc, char** argv) {
  try {
    return flatquant::Main(argc, argv);
  } catch (const flatquant::Error& error) {
    flatquant::PrintError(error.what());
  } catch (const std::bad_alloc&) {
    flatquant::PrintError(
        "out of memory; use a smaller model, a smaller batch or --seqlen, or a larger machine "
        "[system.out_of_memory]");
  } catch (const std::exception& error) {
    flatquant::PrintError(std::string(error.what()) + " [system.unexpected]");
  } catch (...) {
    flatquant::PrintError("unknown failure [system.unexpected]");
  }
  return 1;
}
