#include "apps/transforms_options.h"

#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <filesystem>
#include <string>
#include <vector>

#include "apps/console.h"
#include "apps/options.h"
#include "flatquant/base/error.h"
#include "flatquant/packed/transforms_file.h"

namespace flatquant {
namespace {

void CheckReadable(const std::filesystem::path& file, const char* hint) {
  if (::access(file.c_str(), R_OK) == 0) return;
  throw Error("file.open", file.string(), "cannot be read", hint);
}

}  // namespace

void AddTransforms(CLI::App& command, TransformsArguments* arguments) {
  TransformsArguments& a = *arguments;
  CLI::Option* file =
      command
          .add_option(
              "--transforms", a.file,
              "Use these transforms and clips, do not train: of --export-transforms, or the "
              "original's flat_matrices.pth")
          ->type_name("FILE");
  command
      .add_option_function<std::string>(
          "--from",
          [&command, arguments](const std::string& directory) {
            arguments->from = directory;
            arguments->gives_scheme = command.count("--scheme") > 0;
            arguments->gives_lm_head = command.count("--lm-head") > 0;
          },
          "Use those of this packed model of MODEL_DIR, and its scheme: other --weights without "
          "calibrating anew")
      ->type_name("PACKED_DIR")
      ->excludes(file)
      ->excludes(command.get_option("--method"));
  command
      .add_option("--export-transforms", a.export_to,
                  "Write transforms, diagonals and clips there too, for --transforms")
      ->type_name("FILE.safetensors")
      ->check([](const std::string& name) -> std::string {
        return name.ends_with(".safetensors") ? "" : name + ": the name must end in .safetensors";
      });
}

void CheckTransforms(const TransformsArguments& arguments) {
  if (!arguments.file.empty()) CheckReadable(arguments.file, "check --transforms");
  if (!arguments.export_to.empty()) CheckCanCreate(arguments.export_to);
  if (arguments.from.empty()) return;
  CheckModelDirectory(arguments.from);
  if (!IsPackedDirectory(arguments.from)) {
    throw Error("quantize.not_packed", arguments.from, "is no packed model",
                "pass a directory that 'flatquant quantize' wrote");
  }
  std::error_code ignored;
  if (!std::filesystem::exists(TransformsFile(arguments.from), ignored)) {
    throw Error("quantize.no_transforms", arguments.from,
                "keeps no transforms: an older program or a method with flattened sites made it",
                "quantize the model anew");
  }
  CheckReadable(TransformsFile(arguments.from), "mend its permissions");
}

void ApplyTransforms(const TransformsArguments& arguments, QuantizeSettings* settings) {
  if (!arguments.file.empty()) settings->options.transforms = arguments.file;
  if (arguments.from.empty()) return;
  settings->options.transforms = TransformsFile(arguments.from);
  const PackedModel packed = ReadPackedModel(arguments.from);
  if (!arguments.gives_scheme) settings->scheme = packed.scheme.Name();
  if (!arguments.gives_lm_head) settings->lm_head_bits = packed.head.bits;
  // For people: what made the transforms. Other programs' names are theirs.
  const std::vector<std::string> known = MethodNames();
  const auto method = packed.provenance.find("method");
  if (method != packed.provenance.end() &&
      std::find(known.begin(), known.end(), method->second) != known.end()) {
    settings->options.method = method->second;
  }
}

void ExportTransforms(const TransformsArguments& arguments, const PackedModel& packed) {
  if (arguments.export_to.empty()) return;
  if (!packed.transforms) {
    throw Error("quantize.no_transforms", arguments.export_to,
                "was not written: flattened sites have no such form; the model is complete",
                "leave --export-transforms out");
  }
  WriteTransforms(arguments.export_to, packed.config.layers, *packed.transforms);
}

}  // namespace flatquant
