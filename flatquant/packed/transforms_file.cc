#include "flatquant/packed/transforms_file.h"

#include <utility>
#include <vector>

#include "flatquant/checkpoint/safetensors_writer.h"

namespace flatquant {
namespace fs = std::filesystem;

fs::path TransformsFile(const fs::path& directory) { return directory / "transforms.safetensors"; }

void WriteTransforms(const fs::path& path, int64_t layers,
                     const std::map<std::string, Tensor>& tensors) {
  std::vector<std::pair<std::string, TensorView>> views;
  for (const auto& [name, tensor] : tensors) views.emplace_back(name, tensor);
  WriteSafetensors(path, views,
                   {{"format", kTransformsFormat},
                    {"version", kTransformsVersion},
                    {"layers", std::to_string(layers)}});
}

}  // namespace flatquant
