#pragma once

#include <filesystem>
#include <string>

#include "flatquant/compress/job/block_store.h"
#include "flatquant/model/config.h"

namespace flatquant::compress {

// A finished block as a file: its tensors under the names that they will have in the
// packed model; its grid, as quantization_config writes it, its report and its job as
// notes.
//
// job: identifies the job that the block belongs to. Errors: file.*.
void WriteBlockState(const std::filesystem::path& path, const ModelConfig& config, int64_t layer,
                     const FinishedBlock& block, const std::string& job);

// Tensors stay mapped. Errors: job.damaged (also: another job's or another block's),
// safetensors.*, packed.* (a block that the format cannot hold), file.*.
FinishedBlock ReadBlockState(const std::filesystem::path& path, const ModelConfig& config,
                             int64_t layer, const std::string& job);

}  // namespace flatquant::compress
