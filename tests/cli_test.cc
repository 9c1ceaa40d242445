// Runs the real binary on the embedded model: what it prints where, how it fails,
// with which exit status. Every start costs the loading of LibTorch, so that what
// a room's own tests can check is left to them.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "flatquant/base/file.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using ::testing::AllOf;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using testing::ScratchFolder;
using testing::SourcePath;
using ::testing::StartsWith;

const std::string kDemo = SourcePath("models/demo-7m").string();
const std::string kEvalSpec = "jsonl:" + kDemo + "/selfgen-eval.jsonl";

struct Outcome {
  int status = -1;
  std::string out;
  std::string err;

  // The result of a command that must have failed, with one line on stderr.
  std::string OnlyErrorLine() const {
    EXPECT_EQ(out, "");
    EXPECT_THAT(err, AllOf(StartsWith("flatquant: error: "), EndsWith("\n")));
    EXPECT_EQ(std::count(err.begin(), err.end(), '\n'), 1) << err;
    return err;
  }
};

// isa: the value of FLATQUANT_ISA, if not empty.
Outcome Flatquant(std::vector<std::string> arguments, const std::string& isa = {}) {
  const fs::path scratch = ScratchFolder();
  const fs::path out = scratch / "out";
  const fs::path err = scratch / "err";
  arguments.insert(arguments.begin(), FLATQUANT_BINARY);
  std::vector<char*> argv;
  for (std::string& argument : arguments) argv.push_back(argument.data());
  argv.push_back(nullptr);
  const pid_t child = ::fork();
  if (child == 0) {
    if (!isa.empty()) ::setenv("FLATQUANT_ISA", isa.c_str(), 1);
    ::dup2(::open("/dev/null", O_RDONLY), STDIN_FILENO);
    ::dup2(::open(out.c_str(), O_WRONLY | O_CREAT, 0600), STDOUT_FILENO);
    ::dup2(::open(err.c_str(), O_WRONLY | O_CREAT, 0600), STDERR_FILENO);
    ::execv(argv[0], argv.data());
    ::_exit(127);
  }
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status)) << "ended by signal " << WTERMSIG(status);
  return {WEXITSTATUS(status), ReadFile(out), ReadFile(err)};
}

TEST(Cli, VersionAndHelp) {
  const Outcome version = Flatquant({"--version"});
  EXPECT_EQ(version.status, 0);
  EXPECT_THAT(version.out, StartsWith("flatquant "));
  const Outcome help = Flatquant({"--help"});
  EXPECT_EQ(help.status, 0);
  for (const char* command : {"quantize", "eval", "generate", "tokenize", "bench", "inspect"}) {
    EXPECT_THAT(help.out, HasSubstr(std::string("\n  ") + command));
  }
  for (const char* command : {"eval", "generate", "bench"}) {
    const Outcome one = Flatquant({command, "--help"});
    EXPECT_EQ(one.status, 0);
    EXPECT_EQ(one.err, "");
    EXPECT_THAT(one.out, AllOf(HasSubstr("Examples:\n  flatquant " + std::string(command)),
                               HasSubstr("Usage: ")));
  }
}

TEST(Cli, UsageErrorsExitWithTwo) {
  const std::vector<std::vector<std::string>> kBad = {
      {},
      {"frobnicate"},
      {"eval", kDemo},
      {"eval", kDemo, "--ppl", "html:x"},
      {"eval", kDemo, "--ppl", kEvalSpec, "--limit", "0"},
      {"eval", kDemo, "--ppl", kEvalSpec, "--precision", "f64"},
      {"eval", kDemo, "--ppl", kEvalSpec, "--no-such-option"},
      {"eval", kDemo, "--tasks", "piqa"},
      {"eval", kDemo, "--ppl", kEvalSpec, "--kl-base", "a", "--save-base", "b"},
      {"generate", kDemo},
      {"tokenize", kDemo, "-p", "a", "--jsonl", "b"},
      {"inspect"},
      {"bench", "--shape", "gpt-5"},
      {"bench", "--variant", "flatquant,int5"},
      {"bench", "-b", "0"},
      {"bench", kDemo, "second-model"},
  };
  for (const auto& arguments : kBad) {
    const Outcome outcome = Flatquant(arguments);
    EXPECT_EQ(outcome.status, 2) << ::testing::PrintToString(arguments);
    EXPECT_THAT(outcome.OnlyErrorLine(), HasSubstr("--help'"));
  }
}

TEST(Cli, FailuresExitWithOne) {
  const struct {
    std::vector<std::string> arguments;
    std::string name;
  } kBad[] = {
      {{"eval", "/no/such/model", "--ppl", kEvalSpec}, "[model.no_directory]"},
      {{"inspect", "/no/such\nmodel"}, "[inspect.no_such_path]"},
      {{"inspect", kDemo + "/selfgen-eval.jsonl"}, "[inspect.unknown_kind]"},
      {{"eval", kDemo, "--ppl", "text:/no/such/file"}, "[file.open]"},
      {{"eval", kDemo, "--ppl", kEvalSpec, "--seqlen", "1025"}, "[usage.seqlen]"},
      {{"eval", kDemo, "--ppl", kEvalSpec, "--json", "/no/such/folder/x"}, "[output.not_writable]"},
      {{"eval", ScratchFolder().string(), "--ppl", kEvalSpec}, "["},
      {{"eval", kDemo, "--tasks", "boolq", "--tasks-dir", kDemo}, "[eval.unknown_task]"},
      {{"eval", kDemo, "--tasks", "piqa", "--tasks-dir", kDemo}, "[eval.no_task_file]"},
      {{"eval", kDemo, "--kl-base", kDemo + "/config.json"}, "[eval.bad_kl_base]"},
      {{"eval", kDemo, "--ppl", kEvalSpec, "--resume", kDemo + "/config.json"}, "[eval.bad_state]"},
      {{"tokenize", ScratchFolder().string(), "-p", "a"}, "[tokenizer.missing]"},
  };
  for (const auto& bad : kBad) {
    const Outcome outcome = Flatquant(bad.arguments);
    EXPECT_EQ(outcome.status, 1) << bad.name;
    EXPECT_THAT(outcome.OnlyErrorLine(), HasSubstr(bad.name));
  }
}

// Task data that somebody else made: one line says what is wrong, and where.
TEST(Cli, BadTaskDataIsOneLine) {
  const fs::path folder = ScratchFolder();
  const auto write = [&](const char* file, const std::string& contents) {
    std::ofstream(folder / file) << contents;
  };
  write("lambada_test.jsonl", "{\"text\": \"a b\"}\n{\"txt\": \"a b\"}\n");
  write("ARC-Easy-Test.jsonl", "");
  write("winogrande_xl_dev.jsonl",
        R"({"sentence": "It is _ here.", "option1": "a", "option2": "b", "answer": "3"})");
  write("piqa_valid.jsonl", R"({"goal": "a", "sol1": "b", "sol2": "c"})");
  write("piqa_valid-labels.lst", "0\n1\n");
  std::string long_text;
  for (int i = 0; i < 1100; ++i) long_text += "the city ";  // beyond 1024 tokens
  write("hellaswag_val.jsonl",
        R"({"query": ")" + long_text + R"(", "endings": ["a", "b", "c", "d"], "label": 0})");
  const struct {
    const char* task;
    const char* error;
    const char* where;
  } kBad[] = {
      {"lambada_openai", "[eval.missing_field]", "lambada_test.jsonl:2"},
      {"arc_easy", "[eval.no_items]", "ARC-Easy-Test.jsonl"},
      {"winogrande", "[eval.bad_label]", "winogrande_xl_dev.jsonl:1"},
      {"piqa", "[eval.label_count]", "piqa_valid-labels.lst"},
      {"hellaswag", "[eval.context]", "hellaswag"},
  };
  for (const auto& bad : kBad) {
    const Outcome outcome =
        Flatquant({"eval", kDemo, "--tasks", bad.task, "--tasks-dir", folder.string()});
    EXPECT_EQ(outcome.status, 1) << bad.task;
    EXPECT_THAT(outcome.OnlyErrorLine(), AllOf(HasSubstr(bad.error), HasSubstr(bad.where)));
  }
}

TEST(Cli, AFullDiskBehindStdoutIsAnError) {
  if (!fs::exists("/dev/full")) GTEST_SKIP() << "needs /dev/full";
  const fs::path err = ScratchFolder() / "err";
  const std::string command = std::string("'") + FLATQUANT_BINARY + "' inspect '" + kDemo +
                              "' > /dev/full 2> '" + err.string() + "'";
  EXPECT_EQ(WEXITSTATUS(std::system(command.c_str())), 1);
  EXPECT_THAT(ReadFile(err), HasSubstr("[output.not_writable]"));
}

TEST(Cli, TokenizeText) {
  EXPECT_EQ(Flatquant({"tokenize", kDemo, "-p", "Hello, world!", "--no-special"}).out,
            "[339, 3529, 4036, 1397, 4080]\n");
  EXPECT_EQ(Flatquant({"tokenize", kDemo, "-p", "Hello, world!"}).out,
            "[1, 339, 3529, 4036, 1397, 4080]\n");
}

TEST(Cli, TokenizeJsonLines) {
  const fs::path file = ScratchFolder() / "texts.jsonl";
  std::ofstream(file) << "{\"text\": \"Hello, world!\"}\n{\"text\": \"\"}\n";
  const Outcome outcome = Flatquant({"tokenize", kDemo, "--jsonl", file.string(), "--no-special"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_EQ(outcome.out,
            "{\"ids\":[339,3529,4036,1397,4080],\"decoded\":\"Hello, world!\"}\n"
            "{\"ids\":[],\"decoded\":\"\"}\n");
  std::ofstream(file) << "{\"text\": \"a\"}\n{\"txt\": 1}\n";
  EXPECT_THAT(Flatquant({"tokenize", kDemo, "--jsonl", file.string()}).OnlyErrorLine(),
              HasSubstr("texts.jsonl:2: has no \"text\""));
}

TEST(Cli, InspectAPlainModel) {
  const Outcome outcome = Flatquant({"inspect", kDemo});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.out,
              AllOf(HasSubstr(": plain model, 74 tensors in 1 file"), HasSubstr("llama: 8 blocks"),
                    HasSubstr("model.layers.{0-7}.mlp.up_proj.weight")));
  // An option's value may be left out at the end.
  const json machine = json::parse(Flatquant({"inspect", kDemo, "--json"}).out);
  EXPECT_EQ(machine.at("config").at("layers"), 8);
  EXPECT_EQ(machine.at("tensors").size(), 8 * 9 + 2);
  const json file =
      json::parse(Flatquant({"inspect", kDemo + "/model.safetensors", "--json", "-"}).out);
  EXPECT_EQ(file.at("kind"), "safetensors");
  EXPECT_EQ(file.at("tensors"), machine.at("tensors"));
}

TEST(Cli, InspectTheCpu) {
  const Outcome outcome = Flatquant({"inspect", "--cpu"});
  EXPECT_EQ(outcome.status, 0);
  EXPECT_THAT(outcome.out, HasSubstr("usable cores"));
  const json machine = json::parse(Flatquant({"inspect", "--cpu", "--json", "-"}).out);
  EXPECT_TRUE(machine.at("cpu").at("kernels").contains("GemmInt"));
}

// The binary runs on machines with less: kernels of a narrower instruction set are
// taken, and give the same text but for rare ties.
TEST(Cli, ForcedInstructionSets) {
  double values[2];
  int i = 0;
  for (const char* isa : {"reference", "avx2"}) {
    const json cpu = json::parse(Flatquant({"inspect", "--cpu", "--json", "-"}, isa).out).at("cpu");
    EXPECT_EQ(cpu.at("isa_limit"), isa);
    EXPECT_EQ(cpu.at("kernels").at("GemmInt"), i == 0 ? "Reference" : "X86Avx2");
    EXPECT_THAT(Flatquant({"inspect", "--cpu"}, isa).out,
                HasSubstr(i == 0 ? "*Reference" : "*X86Avx2"));
    const Outcome outcome = Flatquant(
        {"eval", kDemo, "--ppl", kEvalSpec, "--seqlen", "128", "--limit", "1", "--json", "-"}, isa);
    ASSERT_EQ(outcome.status, 0) << outcome.err;
    values[i++] = json::parse(outcome.out).at("results").at(0).at("value").get<double>();
  }
  // Sums in another order, nothing else: 127 likelihoods, each within 1e-4.
  EXPECT_NEAR(values[0], values[1], 1e-3 * values[0]);
}

TEST(Cli, UnknownInstructionSetsAreRefused) {
  for (const std::vector<std::string>& arguments : {std::vector<std::string>{"inspect", "--cpu"},
                                                    {"bench"},
                                                    {"generate", kDemo, "-p", "a", "-n", "1"}}) {
    const Outcome outcome = Flatquant(arguments, "avx1024");
    EXPECT_EQ(outcome.status, 1);
    EXPECT_THAT(outcome.OnlyErrorLine(),
                AllOf(HasSubstr("avx1024"), HasSubstr("[kernels.unknown_isa]")));
  }
}

TEST(Cli, BenchPrintsATableOrOneObject) {
  const std::vector<std::string> command = {"bench", kDemo, "-p", "16", "-n", "4",
                                            "-b",    "1,2", "-r", "2",  "-t", "2"};
  const Outcome table = Flatquant(command);
  ASSERT_EQ(table.status, 0) << table.err;
  EXPECT_THAT(table.out, AllOf(StartsWith("| model "), HasSubstr("| pp16 |"), HasSubstr(" tg4 |"),
                               HasSubstr("limits: read "), HasSubstr("kernels: ")));
  std::vector<std::string> machine = command;
  machine.insert(machine.end(), {"--json", "-"});
  const json results = json::parse(Flatquant(machine).out).at("results");
  ASSERT_EQ(results.size(), 3u);
  EXPECT_EQ(results[0].at("test"), "pp16");
  EXPECT_EQ(results[0].at("variant"), "bf16");
  EXPECT_EQ(results[0].at("unit"), "tokens/s");
  EXPECT_GT(results[0].at("percent_of_limit").get<double>(), 0);
  EXPECT_EQ(results[2].at("batch"), 2);
}

TEST(Cli, InspectAPthFile) {
  FLATQUANT_NEEDS_SHARED("golden/wikillama-43m/flat_matrices.pth");
  const Outcome outcome = Flatquant(
      {"inspect", testing::SharedPath("golden/wikillama-43m/flat_matrices.pth").string()});
  EXPECT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr(": PyTorch file, "), HasSubstr("{0-11}")));
}

TEST(Cli, EvalPrintsOneObject) {
  const Outcome outcome = Flatquant({"eval", kDemo, "--ppl", kEvalSpec + "," + kEvalSpec,
                                     "--seqlen", "128", "--limit", "2", "--json", "-"});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  const json results = json::parse(outcome.out).at("results");
  ASSERT_EQ(results.size(), 2u);
  EXPECT_EQ(results[0].at("name"), "jsonl");
  EXPECT_EQ(results[0].at("metric"), "perplexity");
  EXPECT_EQ(results[0].at("windows"), 2);
  EXPECT_EQ(results[0].at("tokens"), 256);
  // The whole file has perplexity 21 in longer windows; a broken model has 4096.
  EXPECT_GT(results[0].at("value").get<double>(), 5);
  EXPECT_LT(results[0].at("value").get<double>(), 80);
  EXPECT_EQ(results[0].at("value"), results[1].at("value"));
}

TEST(Cli, EvalWritesAFileAndPrintsALine) {
  const fs::path file = ScratchFolder() / "r.json";
  const Outcome outcome = Flatquant({"eval", kDemo, "--ppl", kEvalSpec, "--seqlen", "64", "--limit",
                                     "1", "--json", file.string()});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, HasSubstr("perplexity"));
  EXPECT_EQ(json::parse(ReadFile(file)).at("results").size(), 1u);
}

TEST(Cli, EvalScoresTasksAndComparesModels) {
  const fs::path folder = ScratchFolder();
  std::ofstream(folder / "piqa_valid.jsonl")
      << R"({"goal": "Where do people live?", "sol1": "Many people live in the city.", )"
      << R"("sol2": "City the in people many.", "label": 0})"
      << "\n";
  const Outcome outcome = Flatquant({"eval",          kDemo,
                                     "--tasks",       "piqa",
                                     "--tasks-dir",   folder.string(),
                                     "--log-samples", (folder / "log").string(),
                                     "--ppl",         kEvalSpec,
                                     "--seqlen",      "64",
                                     "--limit",       "1",
                                     "--kl-base",     kDemo,
                                     "--vs",          kDemo,
                                     "--json",        (folder / "json").string()});
  ASSERT_EQ(outcome.status, 0) << outcome.err;
  EXPECT_THAT(outcome.out, AllOf(HasSubstr("acc_norm   100.00 %   (1 items"),
                                 HasSubstr("Same top p: 100.000"), HasSubstr("recovered")));
  const json results = json::parse(ReadFile(folder / "json"));
  EXPECT_EQ(results.at("results").size(), 3u);  // perplexity, acc, acc_norm
  EXPECT_EQ(results.at("kl")[0].at("kld").at("value"), 0);
  for (const json& row : results.at("recovery")) {
    EXPECT_NEAR(row.at("recovered_percent").get<double>(), 100, 1e-9);
  }
  const json sample = json::parse(ReadFile(folder / "log"));
  EXPECT_EQ(sample.at("arguments")[1][1], " City the in people many.");
}

TEST(Cli, GenerateContinuesThePrompt) {
  const std::vector<std::string> command = {"generate", kDemo, "-p", "The city", "-n", "8"};
  const auto run = [&](std::vector<std::string> more) {
    more.insert(more.begin(), command.begin(), command.end());
    return Flatquant(more);
  };
  const Outcome first = run({"--seed", "3"});
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_THAT(first.out, AllOf(StartsWith("The city"), EndsWith("\n")));
  EXPECT_THAT(first.err, HasSubstr("tokens/s"));
  EXPECT_EQ(run({"--seed", "3"}).out, first.out);
  const Outcome only = run({"--seed", "3", "--no-display-prompt"});
  EXPECT_EQ("The city" + only.out, first.out);

  const Outcome machine = run({"--temp", "0", "--json", "-"});
  const json result = json::parse(machine.out);
  EXPECT_EQ(result.at("prompt"), "The city");
  EXPECT_LE(result.at("ids").size(), 8u);
  EXPECT_GT(result.at("ids").size(), 0u);
  EXPECT_NE(result.at("text"), "");
}

TEST(Cli, GenerateRefusesAPromptThatFillsTheContext) {
  const Outcome outcome =
      Flatquant({"generate", kDemo, "-p", "one two three four five", "-c", "4"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.OnlyErrorLine(), HasSubstr("[generate.prompt_too_long]"));
}

#if FLATQUANT_WITH_COMPRESS

TEST(Cli, QuantizeInspectEvalGenerate) {
  const fs::path folder = ScratchFolder();
  const std::string out = (folder / "packed").string();
  const std::vector<std::string> command = {"quantize", kDemo, "-o",       out,
                                            "--method", "rtn", "--scheme", "w4a8kv4"};
  const Outcome first = Flatquant(command);
  ASSERT_EQ(first.status, 0) << first.err;
  EXPECT_THAT(first.out, AllOf(HasSubstr("rtn w4a8kv4"), HasSubstr("next: flatquant generate")));

  const json packed = json::parse(Flatquant({"inspect", out, "--check", "--json", "-"}).out);
  EXPECT_EQ(packed.at("kind"), "packed");
  EXPECT_EQ(packed.at("scheme"), "w4a8kv4");
  EXPECT_EQ(packed.at("provenance").at("method"), "rtn");
  EXPECT_LT(packed.at("sizes").at("linear_ratio").get<double>(), 0.27);
  EXPECT_THAT(Flatquant({"inspect", out}).out,
              AllOf(HasSubstr("attn_in"), HasSubstr("blocks 0-7"), HasSubstr("method: rtn")));

  const Outcome from = Flatquant({"quantize", kDemo, "-o", out, "--from", out, "--restarts", "2"});
  EXPECT_EQ(from.status, 1);
  EXPECT_THAT(from.OnlyErrorLine(), HasSubstr("--restarts 2: transforms that are given"));

  // A packed model is replaced; the report says the same again.
  const Outcome again = Flatquant({"quantize", kDemo, "-o", out, "--method", "rtn", "--scheme",
                                   "w4a16", "--blocks", "1", "--json", "-"});
  ASSERT_EQ(again.status, 0) << again.err;
  EXPECT_EQ(json::parse(again.out).at("scheme"), "w4a16");

  const Outcome eval =
      Flatquant({"eval", out, "--ppl", kEvalSpec, "--seqlen", "64", "--limit", "1", "--json", "-"});
  ASSERT_EQ(eval.status, 0) << eval.err;
  EXPECT_LT(json::parse(eval.out)["results"][0]["value"].get<double>(), 200);
  EXPECT_EQ(Flatquant({"generate", out, "-p", "The", "-n", "2"}).status, 0);
}

TEST(Cli, QuantizeHelpTeachesRestarts) {
  EXPECT_THAT(Flatquant({"quantize", "--help"}).out, HasSubstr("--restarts N=1 "));
}

TEST(Cli, QuantizeChecksBeforeItWorks) {
  const fs::path folder = ScratchFolder();
  const std::string out = (folder / "out").string();
  std::ofstream(folder / "file") << "precious";
  const std::string calib = "jsonl:" + kDemo + "/selfgen-calib.jsonl";
  const struct {
    std::vector<std::string> arguments;
    int status;
    std::string text;
  } kBad[] = {
      {{kDemo, "-o", out, "--scheme", "w1a1"}, 2, "[scheme.bad]"},
      {{kDemo, "-o", out, "--method", "magic"}, 2, "--method"},
      {{kDemo, "-o", out, "--group-size", "0"}, 2, "--group-size"},
      {{kDemo, "-o", out, "--group-size", "-2"}, 2, "--group-size"},
      {{kDemo, "-o", out, "--group-size", "many"}, 2, "--group-size"},
      {{kDemo, "-o", out, "--group-size", "64", "--method", "rtn", "--weights", "learned",
        "--calib", calib, "--seqlen", "64"},
       1,
       "[quantize.bad_option]"},
      {{kDemo, "-o", out, "--restarts", "0"}, 2, "--restarts"},
      {{kDemo, "-o", out, "--restarts", "17"}, 2, "--restarts"},
      {{kDemo, "-o", out, "--restarts", "2", "--method", "quarot"},
       1,
       "--restarts 2: method quarot"},
      {{kDemo, "-o", out, "--restarts", "2", "--transforms", (folder / "file").string()},
       1,
       "--restarts 2: transforms that are given"},
      {{kDemo, "--dry-run", "--restarts", "2", "--method", "rtn"}, 1, "[quantize.bad_option]"},
      {{kDemo, "-o", out}, 1, "[quantize.needs_calibration]"},
      {{kDemo, "-o", folder.string()}, 1, "[packed.not_replaceable]"},
      {{kDemo, "-o", (folder / "file" / "out").string()}, 1, "file"},
      {{kDemo, "-o", out, "--calib", "text:/no/such/file"}, 1, "[file.open]"},
      {{kDemo, "-o", out, "--calib", calib, "--seqlen", "4096"}, 1, "[usage.seqlen]"},
      {{kDemo, "-o", out, "--transforms", "/no/such.pth"}, 1, "[file.open]"},
  };
  for (const auto& bad : kBad) {
    std::vector<std::string> arguments = bad.arguments;
    arguments.insert(arguments.begin(), "quantize");
    const Outcome outcome = Flatquant(arguments);
    EXPECT_EQ(outcome.status, bad.status) << bad.text;
    EXPECT_THAT(outcome.OnlyErrorLine(), HasSubstr(bad.text));
    EXPECT_FALSE(fs::exists(out));
  }
  EXPECT_EQ(ReadFile(folder / "file"), "precious");
}

#else

TEST(Cli, QuantizeSaysThatItIsNotBuilt) {
  const Outcome outcome = Flatquant({"quantize", kDemo, "-o", "out", "--method", "rtn"});
  EXPECT_EQ(outcome.status, 1);
  EXPECT_THAT(outcome.OnlyErrorLine(),
              AllOf(HasSubstr("FLATQUANT_COMPRESS"), HasSubstr("[quantize.unavailable]")));
}

#endif

}  // namespace
}  // namespace flatquant
