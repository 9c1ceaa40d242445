// flatquant convert: a checkpoint that the original FlatQuant quantized becomes a packed
// model.

#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/console.h"
#include "apps/model_files.h"
#include "apps/options.h"
#include "flatquant/base/progress.h"
#include "flatquant/compress/import_original.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/packed_model.h"

namespace flatquant {
namespace {

struct ConvertArguments {
  std::string checkpoint;
  std::string base;
  std::string out;
  std::string scheme = "w4a4kv4";
  int lm_head_bits = 16;
  std::string json;
};

void Run(const ConvertArguments& arguments) {
  const Report report(arguments.json);
  CheckModelDirectory(arguments.base);
  CheckPackedDestination(arguments.out);
  CheckCanCreate(arguments.out);
  PackedModel packed = ImportOriginal(arguments.checkpoint, ModelConfig::Open(arguments.base),
                                      Scheme::Parse(arguments.scheme));
  packed.provenance["tool_version"] = FLATQUANT_VERSION;
  if (arguments.lm_head_bits < 16) QuantizeHead(arguments.lm_head_bits, kHeadActBits, &packed);
  WritePackedModel(packed, arguments.base, arguments.out);
  const uint64_t bytes = WeightFileBytes(arguments.out);
  report.Line("{} -> {}: {} of weights, {}", arguments.checkpoint, arguments.out,
              FormatBytes(bytes), packed.scheme.Name());
  if (!report.wants_json()) return;
  const nlohmann::ordered_json json = {
      {"output", arguments.out}, {"scheme", packed.scheme.Name()}, {"packed_bytes", bytes}};
  report.WriteJson(json.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace));
}

}  // namespace

Work SetUpConvert(CLI::App& command) {
  auto arguments = std::make_shared<ConvertArguments>();
  ConvertArguments& a = *arguments;
  AddModelDirectory(command, "CHECKPOINT",
                    "What the original's --quantized_save wrote: a directory or one file",
                    &a.checkpoint);
  command
      .add_option("--base", a.base,
                  "The model that was quantized: its config.json and tokenizer are taken")
      ->required()
      ->type_name("MODEL_DIR");
  command.add_option("-o,--out", a.out, "Where to write; a packed model there is replaced")
      ->required()
      ->type_name("OUT_DIR");
  command
      .add_option("--scheme", a.scheme,
                  "Bits that it was quantized with; the checkpoint does not name all of them")
      ->type_name("SCHEME")
      ->check(CheckedBy(Scheme::Parse))
      ->capture_default_str();
  command
      .add_option("--lm-head", a.lm_head_bits,
                  "Bits of the output projection, and of the embedding where they are tied")
      ->type_name("4|8|16")
      ->check(OneOf(std::vector<int>{4, 8, 16}))
      ->capture_default_str();
  AddJson(command, &a.json);
  command.footer(
      "docs/convert.md says what is read. Codes, scales and transforms are taken as they\n"
      "are.\n"
      "\n"
      "Example:\n"
      "  flatquant convert w4a4-checkpoint --base Llama-3-8B -o llama-3-8b-4bit");
  return [arguments] { Run(*arguments); };
}

}  // namespace flatquant
