#pragma once

#include <cstdint>
#include <filesystem>

namespace flatquant {

// Bytes of the *.safetensors files of a model directory that hold its weights.
uint64_t WeightFileBytes(const std::filesystem::path& directory);

}  // namespace flatquant
