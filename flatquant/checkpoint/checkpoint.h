#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/base/tensor.h"

namespace flatquant {

// The named tensors of a Hugging Face model directory, memory-mapped:
// model.safetensors, or the shards that model.safetensors.index.json names.
class Checkpoint {
 public:
  // directory, or one .safetensors file. Everything is validated here, so that
  // later access cannot fail: see safetensors.h for the named errors; also
  // checkpoint.missing, checkpoint.bad_index, checkpoint.missing_shard,
  // checkpoint.wrong_shard (the index puts a tensor in a shard that lacks it).
  static Checkpoint Open(const std::filesystem::path& path);

  // nullptr if there is no such tensor. Tensors keep their file mapped.
  const Tensor* Find(std::string_view name) const;

  // All tensors, sorted by name.
  const std::map<std::string, Tensor, std::less<>>& tensors() const { return tensors_; }

  // The safetensors __metadata__ of all shards together.
  const std::map<std::string, std::string, std::less<>>& metadata() const { return metadata_; }

  // The files that were read, in name order.
  const std::vector<std::filesystem::path>& files() const { return files_; }

 private:
  std::map<std::string, Tensor, std::less<>> tensors_;
  std::map<std::string, std::string, std::less<>> metadata_;
  std::vector<std::filesystem::path> files_;
};

}  // namespace flatquant
