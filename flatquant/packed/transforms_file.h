#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>

#include "flatquant/base/tensor.h"

// transforms.safetensors (FORMAT.md): what the source's weights were folded with, so that
// other codes can be chosen for them. Nothing that runs a model reads it.
namespace flatquant {

inline constexpr const char* kTransformsFormat = "flatquant-transforms";
inline constexpr const char* kTransformsVersion = "1";

// Where a packed directory keeps it; it may have none.
std::filesystem::path TransformsFile(const std::filesystem::path& directory);

// Writes tensors by name, of a network of `layers` blocks, atomically. Errors: file.*.
void WriteTransforms(const std::filesystem::path& path, int64_t layers,
                     const std::map<std::string, Tensor>& tensors);

}  // namespace flatquant
