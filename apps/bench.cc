// flatquant bench: speed of a network, its layers or its kernels, held against what
// this machine can do. Option names and tests are those of llama-bench.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/bench/ceiling.h"
#include "flatquant/bench/end_to_end.h"
#include "flatquant/bench/gpu.h"
#include "flatquant/bench/operations.h"
#include "flatquant/bench/stopwatch.h"
#include "flatquant/bench/synthetic_model.h"
#include "flatquant/kernels/isa.h"
#include "flatquant/model/named_shapes.h"

namespace flatquant {
namespace {

struct BenchArguments {
  // The positional words: what to measure and a model directory, either or both.
  std::string first;
  std::string second;
  std::string what = "e2e";
  std::string directory;
  std::string shape = "tinyllama-1.1b";
  std::vector<std::string> variants = bench::VariantNames();
  int64_t layers = 0;
  bench::SyntheticBits bits;
  int threads = 0;
  std::string device = "cpu";
  bench::Plan plan;
  bench::Format format = bench::Format::kMarkdown;
  std::string json;
};

const std::vector<std::string>& Kinds() {
  static const std::vector<std::string> kinds = {"e2e", "layer", "linear", "attention", "kernel"};
  return kinds;
}

// Sorts the positional words into what to measure and where the model is.
void ReadWords(BenchArguments* arguments) {
  for (const std::string& word : {arguments->first, arguments->second}) {
    if (word.empty()) continue;
    if (std::find(Kinds().begin(), Kinds().end(), word) != Kinds().end()) {
      arguments->what = word;
    } else if (arguments->directory.empty()) {
      arguments->directory = word;
    } else {
      throw CLI::ValidationError(fmt::format(
          "'{}': give one of {}, and one model directory at most", word, fmt::join(Kinds(), ", ")));
    }
  }
}

ModelConfig ShapeOf(const BenchArguments& arguments) {
  if (!arguments.directory.empty()) {
    CheckModelDirectory(arguments.directory);
    return ModelConfig::Open(arguments.directory);
  }
  ModelConfig config = NamedShape(arguments.shape);
  if (arguments.layers > 0) config.layers = std::min(config.layers, arguments.layers);
  return config;
}

void RunEngine(const BenchArguments& arguments, const Engine& engine, const bench::Subject& subject,
               bench::Run* run) {
  Log(fmt::format("{} {}: {} of weights, {} threads", subject.model, subject.variant,
                  FormatBytes(engine.weight_bytes()), engine.pool().threads()));
  if (arguments.what == "layer") {
    bench::RunLayer(engine, subject, arguments.plan, run);
  } else {
    bench::RunEndToEnd(engine, subject, arguments.plan, run);
  }
}

void RunDirectory(const BenchArguments& arguments, bench::Run* run) {
  CheckModelDirectory(arguments.directory);
  const bool is_packed = IsPackedDirectory(arguments.directory);
  const auto start = std::chrono::steady_clock::now();
  const auto engine = Engine::Open(
      arguments.directory,
      {.threads = arguments.threads, .precision = Precision::kBF16, .device = arguments.device});
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  Log(fmt::format("loaded in {:.2f} s, {:.2f} s per GB in memory", seconds.count(),
                  1e9 * seconds.count() / static_cast<double>(engine->weight_bytes())));
  bench::Subject subject;
  const std::filesystem::path path = std::filesystem::path(arguments.directory) / "";
  subject.model = path.parent_path().filename().string();
  subject.integers = is_packed && engine->multiplies_integers();
  subject.variant = is_packed ? ReadPackedModel(arguments.directory).scheme.Name() : "bf16";
  RunEngine(arguments, *engine, subject, run);
}

void RunShapes(const BenchArguments& arguments, bench::Run* run) {
  const ModelConfig config = ShapeOf(arguments);
  for (const std::string& name : arguments.variants) {
    const bench::Variant variant = bench::ParseVariant(name);
    const auto engine = Engine::FromPacked(
        bench::SyntheticModel(config, variant, arguments.bits, /*seed=*/1),
        {.threads = arguments.threads, .precision = Precision::kBF16, .device = arguments.device});
    const bench::Subject subject = {arguments.shape, name, engine->multiplies_integers()};
    RunEngine(arguments, *engine, subject, run);
  }
}

void RunOperations(const BenchArguments& arguments, const ModelConfig& config, bench::Run* run) {
  const bench::Plan& plan = arguments.plan;
  if (arguments.device != "cpu") {
    bench::UseGpu(arguments.device);
    if (arguments.what == "linear") bench::RunGpuLinears(config, plan, run);
    if (arguments.what == "attention") bench::RunGpuAttention(config, plan, run);
    if (arguments.what == "kernel") bench::RunGpuKernels(config, plan, run);
    return;
  }
  ThreadPool pool(arguments.threads);
  if (arguments.what == "linear") bench::RunLinears(config, plan, pool, run);
  if (arguments.what == "attention") bench::RunAttention(config, plan, pool, run);
  if (arguments.what == "kernel") bench::RunKernels(config, plan, pool, run);
}

void RunBench(const BenchArguments& arguments) {
  const Report report(arguments.json);
  IsaLimit();  // a bad FLATQUANT_ISA is reported here
  bench::Run run;
  run.threads = arguments.threads > 0 ? arguments.threads : UsableCores();
  if (arguments.device == "cpu") run.kernels = bench::KernelsInUse();
  if (arguments.what == "e2e" || arguments.what == "layer") {
    if (arguments.directory.empty()) {
      RunShapes(arguments, &run);
    } else {
      RunDirectory(arguments, &run);
    }
  } else {
    RunOperations(arguments, ShapeOf(arguments), &run);
    for (bench::Result& result : run.results) result.model = arguments.shape;
  }
  report.Line("{}", bench::FormatRun(run, arguments.format));
  if (report.wants_json()) report.WriteJson(bench::ToJson(run).dump());
}

CLI::Option* AddNumbers(CLI::App& command, const char* names, std::vector<int64_t>* values,
                        int64_t smallest, const char* help) {
  return command.add_option(names, *values, help)
      ->delimiter(',')
      ->check(Bounds(smallest, int64_t{1} << 20))
      ->type_name("N,...")
      ->capture_default_str();
}

}  // namespace

Work SetUpBench(CLI::App& command) {
  auto arguments = std::make_shared<BenchArguments>();
  BenchArguments& a = *arguments;
  command.add_option("WHAT", a.first, "e2e (the default), layer, linear, attention or kernel")
      ->type_name("");
  command.add_option("DIR", a.second, "Model directory, packed or plain, in place of --shape")
      ->type_name("");
  command.add_option("--shape", a.shape, "A network with random weights, made in memory")
      ->check(OneOf(ShapeNames()))
      ->type_name(fmt::format("{}", fmt::join(ShapeNames(), "|")))
      ->capture_default_str();
  command.add_option("--layers", a.layers, "Only so many of the shape's layers; 0: all")
      ->check(Bounds(int64_t{0}, int64_t{1} << 20))
      ->type_name("N")
      ->capture_default_str();
  command.add_option("--variant", a.variants, "Which of bf16, int4, quarot, flatquant")
      ->delimiter(',')
      ->check(OneOf(bench::VariantNames()))
      ->type_name("NAME,...")
      ->capture_default_str();
  command.add_option("--lm-head", a.bits.head, "Bits of the quantized variants' output projection")
      ->check(OneOf(std::vector<int>{4, 8, 16}))
      ->type_name("4|8|16")
      ->capture_default_str();
  command.add_option("--kv", a.bits.cache, "Bits of the quantized variants' KV cache")
      ->check(OneOf(std::vector<int>{4, 8, 16}))
      ->type_name("4|8|16")
      ->capture_default_str();
  AddNumbers(command, "-p,--n-prompt", &a.plan.prompts, 0, "Tokens of a prompt: test ppN; 0: none");
  AddNumbers(command, "-n,--n-gen", &a.plan.generated, 0,
             "Tokens generated one by one: test tgN; 0: none");
  AddNumbers(command, "-d,--n-depth", &a.plan.depths, 0,
             "Tokens that the context holds before a test");
  AddNumbers(command, "-b,--batch", &a.plan.batches, 1, "Sequences that are continued together");
  command.add_option("-r,--repetitions", a.plan.repetitions, "Of each test; medians are shown")
      ->check(Bounds(1, 1000))
      ->type_name("N")
      ->capture_default_str();
  command.add_flag("--profile", a.plan.profile,
                   "Show where the time goes: sites (norm, transform, quantization),\n"
                   "linears, cache, attention, head, other");
  AddThreads(command, &a.threads);
  AddDevice(command, &a.device);
  static const std::map<std::string, bench::Format> kFormats = {{"md", bench::Format::kMarkdown},
                                                                {"csv", bench::Format::kCsv},
                                                                {"json", bench::Format::kJson}};
  command
      .add_option_function<std::string>(
          "-o,--output", [&a](const std::string& name) { a.format = kFormats.at(name); },
          "How the table is printed [md]")
      ->check(OneOf(kFormats))
      ->type_name("md|csv|json");
  AddJson(command, &a.json);
  command.callback([&a] { ReadWords(&a); });
  command.footer(
      "Every result is also given as a percentage of what this machine can do, measured in\n"
      "the same process just before and after: the arithmetic peak of the instructions in\n"
      "use for prompts, the read bandwidth of memory for generation. Run it on a quiet\n"
      "machine; medians and standard deviations tell whether it was.\n"
      "\n"
      "Examples:\n"
      "  flatquant bench -p 512 -n 128 -d 0,2048 -b 1,4,16 -t 2\n"
      "  flatquant bench --shape llama-2-7b --layers 4 --variant int4,flatquant --profile\n"
      "  flatquant bench demo-4bit -p 256 -n 64\n"
      "  flatquant bench linear --shape llama-2-7b -b 1,16 -p 512 -o csv\n"
      "  FLATQUANT_ISA=avx2 flatquant bench layer --json -");
  return [arguments] { RunBench(*arguments); };
}

}  // namespace flatquant
