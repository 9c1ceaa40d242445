#include "apps/options.h"

#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <map>

namespace flatquant {

void AddModelDirectory(CLI::App& command, const char* name, const char* help,
                       std::string* directory) {
  command.add_option(name, *directory, help)->required()->type_name("");
}

void AddThreads(CLI::App& command, int* threads) {
  command.add_option("-t,--threads", *threads, "Threads; 0 takes every core that may be used")
      ->check(Bounds(0, 1024))
      ->type_name("N")
      ->capture_default_str();
}

void AddJson(CLI::App& command, std::string* destination) {
  command
      .add_option_function<std::string>(
          "--json",
          [destination](const std::string& value) { *destination = value.empty() ? "-" : value; },
          "Results as JSON into FILE; - (or no FILE): on stdout, alone")
      ->expected(0, 1)
      ->type_name("FILE");
}

void AddPrecision(CLI::App& command, Precision* precision) {
  static const std::map<std::string, Precision> kNames = {
      {"f32", Precision::kF32}, {"f16", Precision::kF16}, {"bf16", Precision::kBF16}};
  command
      .add_option_function<std::string>(
          "--precision", [precision](const std::string& name) { *precision = kNames.at(name); },
          "Arithmetic of what is not quantized: f32 or bf16 on the CPU [f32],\n"
          "f16 or bf16 on a GPU [f16]; sums are f32")
      ->check(OneOf(kNames))
      ->type_name("f32|f16|bf16");
}

void AddDevice(CLI::App& command, std::string* device) {
  command.add_option("--device", *device, "Where to compute: cpu, cuda or cuda:N")
      ->type_name("NAME")
      ->capture_default_str();
}

int64_t WindowLength(int64_t asked, const ModelConfig& config) {
  constexpr int64_t kUsual = 2048;  // what the field's papers use
  if (asked == 0) return std::min(kUsual, config.max_positions);
  if (asked > config.max_positions) {
    throw Error(
        "usage.seqlen", "--seqlen " + std::to_string(asked),
        "is longer than the model's context of " + std::to_string(config.max_positions) + " tokens",
        "use at most that");
  }
  return asked;
}

void CheckModelDirectory(const std::filesystem::path& directory) {
  std::error_code ignored;
  if (std::filesystem::is_directory(directory, ignored)) return;
  throw Error("model.no_directory", directory.string(),
              std::filesystem::exists(directory, ignored) ? "is not a directory" : "does not exist",
              "name a directory with config.json and *.safetensors");
}

}  // namespace flatquant
