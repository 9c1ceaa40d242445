// flatquant inspect: what a model directory, a weight file or this CPU holds.

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/inspect_cpu.h"
#include "apps/inspect_model.h"
#include "apps/inspect_tensors.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/base/progress.h"
#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/checkpoint/pth_reader.h"
#include "flatquant/model/config.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

struct InspectArguments {
  std::string path;
  bool all = false;
  bool check = false;
  bool cpu = false;
  std::string json;
};

// What is found at a path, for people and for machines.
struct Findings {
  std::string kind;   // "packed", "plain", "safetensors" or "pth"
  std::string title;  // the same in words
  std::vector<std::string> lines;
  Json json = Json::object();
  TensorMap tensors;
  size_t files = 1;
};

Findings InspectPacked(const fs::path& path, bool check) {
  Findings found;
  found.kind = "packed";
  found.title = "packed model";
  const PackedModel model = ReadPackedModel(path);
  if (check) CheckCodes(model, path.string());
  found.lines = ConfigLines(model.config);
  const std::vector<std::string> packed = PackedLines(model);
  found.lines.insert(found.lines.end(), packed.begin(), packed.end());
  if (check) found.lines.push_back("check    every weight code is in its range");
  found.json["config"] = ConfigJson(model.config);
  found.json.update(PackedJson(model));
  const Checkpoint checkpoint = Checkpoint::Open(path);
  found.tensors = checkpoint.tensors();
  found.files = checkpoint.files().size();
  return found;
}

// A plain model directory, or one .safetensors file.
Findings InspectCheckpoint(const fs::path& path) {
  Findings found;
  const Checkpoint checkpoint = Checkpoint::Open(path);
  found.tensors = checkpoint.tensors();
  found.files = checkpoint.files().size();
  if (fs::is_directory(path)) {
    found.kind = "plain";
    found.title = "plain model";
    const ModelConfig config = ModelConfig::Open(path);
    found.lines = ConfigLines(config);
    found.json["config"] = ConfigJson(config);
  } else {
    found.kind = "safetensors";
    found.title = "safetensors file";
  }
  for (const auto& [key, value] : checkpoint.metadata()) {
    found.lines.push_back(fmt::format("metadata {}: {}", Printable(key), Printable(value)));
  }
  found.json["metadata"] = checkpoint.metadata();
  return found;
}

Findings InspectPth(const fs::path& path) {
  Findings found;
  found.kind = "pth";
  found.title = "PyTorch file";
  found.tensors = PthFile::Open(path).Tensors();
  return found;
}

Findings InspectPath(const fs::path& path, bool check) {
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    throw Error("inspect.no_such_path", path.string(), "does not exist",
                "name a model directory, a .safetensors or a .pth file");
  }
  if (fs::is_directory(path, ignored)) {
    return IsPackedDirectory(path) ? InspectPacked(path, check) : InspectCheckpoint(path);
  }
  const std::string extension = path.extension().string();
  if (extension == ".safetensors") return InspectCheckpoint(path);
  if (extension == ".pth" || extension == ".pt" || extension == ".bin") return InspectPth(path);
  throw Error("inspect.unknown_kind", path.string(),
              "is neither a directory, .safetensors nor .pth", "name one of these");
}

void Print(const Report& report, const Findings& found, const InspectArguments& arguments) {
  report.Line("{}: {}, {} tensors in {} file{}, {}", Printable(arguments.path), found.title,
              found.tensors.size(), found.files, found.files == 1 ? "" : "s",
              FormatBytes(TotalBytes(found.tensors)));
  for (const std::string& line : found.lines) report.Line("{}", line);
  report.Line("tensors  ({} elements in all{})", TotalElements(found.tensors),
              arguments.all ? "" : "; --all lists each");
  for (const std::string& line : TensorTable(found.tensors, arguments.all)) {
    report.Line("{}", line);
  }
}

void Run(const InspectArguments& arguments) {
  const Report report(arguments.json);
  Json json = Json::object();
  if (!arguments.path.empty()) {
    const Findings found = InspectPath(arguments.path, arguments.check);
    Print(report, found, arguments);
    json = {{"path", arguments.path}, {"kind", found.kind}};
    json.update(found.json);
    json["bytes"] = TotalBytes(found.tensors);
    json["elements"] = TotalElements(found.tensors);
    json["tensors"] = TensorsJson(found.tensors);
  }
  if (arguments.cpu) {
    for (const std::string& line : CpuLines()) report.Line("{}", line);
    json["cpu"] = CpuJson();
  }
  if (report.wants_json()) {
    report.WriteJson(json.dump(-1, ' ', false, Json::error_handler_t::replace));
  }
}

}  // namespace

Work SetUpInspect(CLI::App& command) {
  auto arguments = std::make_shared<InspectArguments>();
  command
      .add_option("PATH", arguments->path,
                  "Model directory (packed or plain), .safetensors or .pth file")
      ->type_name("");
  command.add_flag("--all", arguments->all, "List every tensor, not one line for all blocks");
  command.add_flag("--check", arguments->check,
                   "Also read every quantized weight of a packed model");
  command.add_flag("--cpu", arguments->cpu, "Show what this CPU can do and which kernels it gets");
  AddJson(command, &arguments->json);
  command.footer(
      "Nothing is executed and nothing is written, whatever the files say.\n"
      "\n"
      "Examples:\n"
      "  flatquant inspect models/demo-7m\n"
      "  flatquant inspect demo-4bit --check\n"
      "  flatquant inspect flat_matrices.pth --all\n"
      "  flatquant inspect --cpu\n"
      "  flatquant inspect demo-4bit --json - | jq .sizes");
  command.callback([arguments] {
    if (arguments->path.empty() && !arguments->cpu) throw CLI::RequiredError("PATH or --cpu");
  });
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
