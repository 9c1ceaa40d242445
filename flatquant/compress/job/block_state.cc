#include "flatquant/compress/job/block_state.h"

#include <map>
#include <set>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/compress/job/state_file.h"
#include "flatquant/compress/report_json.h"
#include "flatquant/packed/quantization_config.h"
#include "flatquant/packed/stored_block.h"

namespace flatquant::compress {
namespace {

using nlohmann::json;

// Before the names of FinishedBlock::transforms.
const std::string kTransformsPrefix = "transforms/";

// A model with places for the tensors of such blocks; one will be used.
StoredModel EmptyModel(const ModelConfig& config, const BlockGrid& grid) {
  StoredModel stored;
  stored.model.config = config;
  const auto layers = static_cast<size_t>(config.layers);
  stored.model.blocks.resize(layers);
  stored.grids.resize(layers, grid);
  stored.clips.resize(layers);
  return stored;
}

// The grid travels as the configuration of a network with this block alone, so that the
// packed format's own strict reader reads it back.
ModelConfig OneLayer(ModelConfig config) {
  config.layers = 1;
  return config;
}

std::string GridText(const BlockGrid& grid, const ModelConfig& config, const std::string& where) {
  return WithQuantizationConfig("{}", {Scheme{}, {}, {grid}, {}}, config.tied_embeddings, where);
}

BlockReport ParseReport(const std::string& text, const std::filesystem::path& path) {
  json parsed;
  if (const auto fault = ParseStrictJson(text, &parsed)) ThrowDamaged(path, fault->what);
  try {
    return BlockReportFromJson(parsed);
  } catch (const json::exception& error) {
    ThrowDamaged(path, std::string("its report cannot be read: ") + error.what());
  }
}

}  // namespace

void WriteBlockState(const std::filesystem::path& path, const ModelConfig& config, int64_t layer,
                     const FinishedBlock& block, const std::string& job) {
  const auto index = static_cast<size_t>(layer);
  StoredModel stored = EmptyModel(config, GridOf(block.block));
  stored.model.blocks[index] = block.block;
  stored.clips[index] = ToTensors(block.block);
  std::vector<std::pair<std::string, TensorView>> tensors;
  for (const StoredTensor& slot : StoredBlockTensors(&stored, index)) {
    CheckStoredTensor(slot, *slot.place, path.string());
    tensors.emplace_back(slot.name, *slot.place);
  }
  if (block.transforms) {
    for (const auto& [name, tensor] : *block.transforms) {
      tensors.emplace_back(kTransformsPrefix + name, tensor);
    }
  }
  WriteStateFile(path, tensors,
                 {{"format", "flatquant-block"},
                  {"job", job},
                  {"transforms", block.transforms ? "yes" : "no"},
                  {"grid", GridText(stored.grids[index], config, path.string())},
                  {"report", ToJson(block.report).dump()}});
}

FinishedBlock ReadBlockState(const std::filesystem::path& path, const ModelConfig& config,
                             int64_t layer, const std::string& job) {
  const SafetensorsFile file = ReadStateFile(path);
  const auto note = [&](const char* key) -> const std::string& {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) {
      ThrowDamaged(path, std::string("has no note '") + key + "'");
    }
    return found->second;
  };
  if (note("format") != "flatquant-block") ThrowDamaged(path, "is not the state of a block");
  if (note("job") != job) ThrowDamaged(path, "belongs to another job");

  const std::string where = path.string();
  CheckFormatVersion(note("grid"), where);
  const QuantizationConfig grids = ParseQuantizationConfig(note("grid"), OneLayer(config), where);
  const auto index = static_cast<size_t>(layer);
  StoredModel stored = EmptyModel(config, grids.blocks.front());
  std::map<std::string_view, const Tensor*> tensors;
  std::map<std::string, Tensor> transforms;
  for (const auto& [name, tensor] : file.tensors) {
    if (name.starts_with(kTransformsPrefix)) {
      transforms[name.substr(kTransformsPrefix.size())] = tensor;
    } else {
      tensors[name] = &tensor;
    }
  }
  for (const StoredTensor& slot : StoredBlockTensors(&stored, index)) {
    const auto found = tensors.find(slot.name);
    CheckStoredTensor(slot, found != tensors.end() ? *found->second : Tensor{}, where);
    *slot.place = Aligned(*found->second);
    tensors.erase(found);
  }
  if (!tensors.empty()) {
    ThrowDamaged(path, "holds a tensor " + Quoted(tensors.begin()->first) + " beyond its block's");
  }
  FinishedBlock block{std::move(stored.model.blocks[index]), ParseReport(note("report"), path)};
  if (note("transforms") == "yes") block.transforms = std::move(transforms);
  FillBlock(stored.grids[index], stored.clips[index], &block.block);
  if (block.report.block != layer) ThrowDamaged(path, "is the state of another block");
  return block;
}

}  // namespace flatquant::compress
