#include <array>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/packed/atomic_directory.h"
#include "flatquant/packed/check.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/quantization_config.h"
#include "flatquant/packed/stored_tensors.h"
#include "flatquant/packed/transforms_file.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

// What a source directory may hold beside weights that belongs to the model.
constexpr std::array kCopiedFiles = {
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "generation_config.json",
    "chat_template.jinja",
    "chat_template.json",
};

// What Hugging Face's libraries expect in the metadata of every file.
const std::map<std::string, std::string> kMetadata = {{"format", "pt"}};

using NamedTensors = std::vector<std::pair<std::string, TensorView>>;

// Consecutive tensors, a new shard where one would pass shard_bytes. A shard has
// at least one tensor.
std::vector<NamedTensors> SplitIntoShards(const std::vector<StoredTensor>& slots,
                                          uint64_t shard_bytes) {
  std::vector<NamedTensors> shards(1);
  uint64_t bytes = 0;
  for (const StoredTensor& slot : slots) {
    const uint64_t more = slot.place->bytes();
    if (!shards.back().empty() && bytes + more > shard_bytes) {
      shards.emplace_back();
      bytes = 0;
    }
    shards.back().emplace_back(slot.name, *slot.place);
    bytes += more;
  }
  return shards;
}

std::string ShardName(size_t index, size_t count) {
  if (count == 1) return "model.safetensors";
  char name[64];
  std::snprintf(name, sizeof(name), "model-%05zu-of-%05zu.safetensors", index + 1, count);
  return name;
}

void WriteText(const fs::path& path, const std::string& text) {
  AtomicFile file(path);
  file.Write(text);
  file.Commit();
}

void WriteTensors(const std::vector<StoredTensor>& slots, uint64_t shard_bytes,
                  const fs::path& folder) {
  const std::vector<NamedTensors> shards = SplitIntoShards(slots, shard_bytes);
  nlohmann::json weight_map = nlohmann::json::object();
  uint64_t total = 0;
  for (size_t i = 0; i < shards.size(); ++i) {
    const std::string file = ShardName(i, shards.size());
    WriteSafetensors(folder / file, shards[i], kMetadata);
    for (const auto& [name, tensor] : shards[i]) {
      weight_map[name] = file;
      total += tensor.bytes();
    }
  }
  if (shards.size() == 1) return;
  const nlohmann::json index = {{"metadata", {{"total_size", total}}},
                                {"weight_map", std::move(weight_map)}};
  WriteText(folder / "model.safetensors.index.json", index.dump(2) + "\n");
}

void CopyFiles(const fs::path& source, const fs::path& folder) {
  for (const char* name : kCopiedFiles) {
    const fs::path from = source / name;
    std::error_code error;
    if (fs::symlink_status(from, error).type() == fs::file_type::not_found) continue;
    const MappedFile content = MappedFile::Open(from);
    AtomicFile file(folder / name);
    file.Write(content.bytes().data(), content.bytes().size());
    file.Commit();
  }
}

}  // namespace

void CheckPackedDestination(const fs::path& directory) {
  CheckDestination(directory, IsPackedDirectory);
}

void WritePackedModel(const PackedModel& model, const fs::path& source_directory,
                      const fs::path& directory, const std::string& report, uint64_t shard_bytes) {
  const std::string where = "the model for " + directory.string();
  CheckPackedModel(model, where);
  CheckCodes(model, where);
  AtomicDirectory output(directory, IsPackedDirectory);

  StoredModel stored;
  stored.model = model;
  QuantizationConfig config{
      model.scheme, {model.head.bits, model.head.act_bits}, {}, model.provenance};
  for (const PackedBlock& block : model.blocks) {
    stored.grids.push_back(GridOf(block));
    stored.clips.push_back(ToTensors(block));
  }
  config.blocks = stored.grids;
  const fs::path source_config = source_directory / "config.json";
  WriteText(output.path() / "config.json",
            WithQuantizationConfig(ReadFile(source_config), config, model.config.tied_embeddings,
                                   source_config.string()));
  WriteTensors(StoredTensors(&stored), shard_bytes, output.path());
  CopyFiles(source_directory, output.path());
  if (model.transforms) {
    WriteTransforms(TransformsFile(output.path()), model.config.layers, *model.transforms);
  }
  if (!report.empty()) WriteText(output.path() / "report.json", report);
  // Reads what it wrote before anything is replaced: a source configuration that
  // does not describe this model shows here, at little cost, as no weight is read.
  ReadPackedModel(output.path());
  output.Commit();
}

}  // namespace flatquant
