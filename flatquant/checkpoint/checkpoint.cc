#include "flatquant/checkpoint/checkpoint.h"

#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/checkpoint/safetensors.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";

// Some 100 bytes per tensor: enough for 600,000 of them.
constexpr size_t kMaxIndexBytes = 64 << 20;

using WeightMap = std::map<std::string, std::set<std::string>, std::less<>>;  // shard -> tensors

// A shard lies beside its index; anything else could name any file of the machine.
bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." &&
         name.find_first_of(std::string_view("/\\\0", 3)) == std::string::npos;
}

WeightMap ReadIndex(const fs::path& path) {
  const auto fail = [&](const std::string& what) {
    throw Error("checkpoint.bad_index", path.string(), what, "download the index again");
  };
  nlohmann::json index;
  if (const auto fault = ParseStrictJson(ReadFile(path, kMaxIndexBytes), &index)) fail(fault->what);
  if (!index.is_object()) fail("is not a JSON object");
  const auto weights = index.find("weight_map");
  if (weights == index.end() || !weights->is_object()) fail("has no object 'weight_map'");
  WeightMap shards;
  for (const auto& [tensor, shard] : weights->items()) {
    if (!shard.is_string()) fail("the shard of tensor " + Quoted(tensor) + " is not a string");
    const auto& name = shard.get_ref<const std::string&>();
    if (!IsPlainFileName(name)) {
      fail("the shard " + Quoted(name) + " of tensor " + Quoted(tensor) +
           " is not a plain file name");
    }
    shards[name].insert(tensor);
  }
  if (shards.empty()) fail("names no tensor");
  return shards;
}

// What to do about a folder without safetensors.
std::string MissingHint(const fs::path& folder) {
  for (const char* name : {"pytorch_model.bin", "pytorch_model.bin.index.json"}) {
    if (fs::exists(folder / name)) {
      return std::string("only ") + name + " is there: convert it with save_pretrained(..., " +
             "safe_serialization=True)";
    }
  }
  return "name the folder of a Hugging Face model, or a .safetensors file";
}

}  // namespace

Checkpoint Checkpoint::Open(const fs::path& path) {
  Checkpoint checkpoint;
  const auto add_file = [&](const fs::path& file, const std::set<std::string>* wanted) {
    SafetensorsFile content = OpenSafetensors(file);
    for (auto& [name, tensor] : content.tensors) {
      // The index decides; a shard may hold copies that it does not list.
      if (wanted != nullptr && !wanted->contains(name)) continue;
      checkpoint.tensors_.emplace(std::move(name), std::move(tensor));
    }
    checkpoint.metadata_.merge(content.metadata);
    checkpoint.files_.push_back(file);
  };

  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    throw Error("checkpoint.missing", path.string(), "no such file or folder", "check the path");
  }
  if (!fs::is_directory(path, ignored)) {
    add_file(path, nullptr);
    return checkpoint;
  }
  if (fs::exists(path / kSingleFile, ignored)) {
    add_file(path / kSingleFile, nullptr);
    return checkpoint;
  }
  const fs::path index = path / kIndexFile;
  if (!fs::exists(index, ignored)) {
    throw Error("checkpoint.missing", path.string(),
                "has neither " + std::string(kSingleFile) + " nor " + std::string(kIndexFile),
                MissingHint(path));
  }
  for (const auto& [shard, tensors] : ReadIndex(index)) {
    const fs::path file = path / shard;
    if (!fs::exists(file, ignored)) {
      throw Error("checkpoint.missing_shard", index.string(),
                  "names the shard " + Quoted(shard) + ", which is not there",
                  "download the missing file");
    }
    add_file(file, &tensors);
    for (const std::string& tensor : tensors) {
      if (!checkpoint.tensors_.contains(tensor)) {
        throw Error("checkpoint.wrong_shard", index.string(),
                    "puts tensor " + Quoted(tensor) + " in " + Quoted(shard) + ", which lacks it",
                    "download the index and the shard again");
      }
    }
  }
  return checkpoint;
}

const Tensor* Checkpoint::Find(std::string_view name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

}  // namespace flatquant
