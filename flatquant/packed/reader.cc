#include <cstdint>
#include <filesystem>
#include <set>
#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/checkpoint.h"
#include "flatquant/packed/packed_model.h"
#include "flatquant/packed/quantization_config.h"
#include "flatquant/packed/stored_block.h"
#include "flatquant/packed/stored_tensors.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

// Far beyond any real config.json; bounds what a hostile one can cost.
constexpr size_t kMaxConfigBytes = size_t{16} << 20;

}  // namespace

bool IsPackedDirectory(const fs::path& directory) {
  try {
    return SaysFlatQuant(ReadFile(directory / "config.json", kMaxConfigBytes));
  } catch (const Error&) {
    return false;  // no such file, or none that can be read
  }
}

PackedModel ReadPackedModel(const fs::path& directory) {
  const std::string where = directory.string();
  const std::string config_where = (directory / "config.json").string();
  const std::string text = ReadFile(directory / "config.json", kMaxConfigBytes);
  CheckFormatVersion(text, config_where);
  StoredModel stored;
  stored.model.config = ModelConfig::Open(directory);
  const Checkpoint checkpoint = Checkpoint::Open(directory);
  // Every block has tensors: a hostile number of layers ends here, before
  // memory is set aside for them.
  const auto layers = static_cast<uint64_t>(stored.model.config.layers);
  if (layers > checkpoint.tensors().size()) {
    throw Error("packed.missing_tensor", where,
                "holds " + std::to_string(checkpoint.tensors().size()) + " tensors for " +
                    std::to_string(layers) + " layers",
                "write the packed model again with `flatquant quantize`");
  }
  QuantizationConfig config = ParseQuantizationConfig(text, stored.model.config, config_where);
  stored.model.scheme = config.scheme;
  stored.model.head.bits = config.head.bits;
  stored.model.head.act_bits = config.head.act_bits;
  stored.model.provenance = std::move(config.provenance);
  stored.grids = std::move(config.blocks);
  stored.model.blocks.resize(stored.grids.size());
  stored.clips.resize(stored.grids.size());

  std::set<std::string_view> expected;
  const std::vector<StoredTensor> slots = StoredTensors(&stored);
  for (const StoredTensor& slot : slots) {
    const Tensor* found = checkpoint.Find(slot.name);
    CheckStoredTensor(slot, found != nullptr ? *found : Tensor{}, where);
    *slot.place = Aligned(*found);
    expected.insert(slot.name);
  }
  for (const auto& [name, tensor] : checkpoint.tensors()) {
    if (expected.contains(name)) continue;
    throw Error("packed.extra_tensor", where,
                "tensor '" + name + "' has no place in a model of this configuration",
                "write the packed model again with `flatquant quantize`");
  }
  for (size_t i = 0; i < stored.grids.size(); ++i) {
    FillBlock(stored.grids[i], stored.clips[i], &stored.model.blocks[i]);
  }
  return std::move(stored.model);
}

}  // namespace flatquant
