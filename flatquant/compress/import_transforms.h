#pragma once

#include <filesystem>
#include <vector>

#include "flatquant/compress/block_parameters.h"
#include "flatquant/model/config.h"

namespace flatquant::compress {

// The parameters of all blocks from a transforms.safetensors (FORMAT.md), nothing
// trainable. Errors: transforms.bad_format, transforms.newer_version, transforms.layers,
// transforms.unexpected (a tensor that the model has no place for), transforms.wrong_shape,
// transforms.not_finite, transforms.singular; also safetensors.* and file.*.
std::vector<BlockParameters> ReadTransforms(const std::filesystem::path& file,
                                            const ModelConfig& config, at::Device device);

}  // namespace flatquant::compress
