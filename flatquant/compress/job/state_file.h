#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "flatquant/base/tensor_view.h"
#include "flatquant/checkpoint/safetensors.h"

// The files of a job: safetensors with a checksum over everything that they say, since
// a resumed run must not build on what a failing disk made of them.
namespace flatquant::compress {

// Writes one file, atomically and durably. notes: must not have the key "checksum".
// Errors: file.* (disk full included).
void WriteStateFile(const std::filesystem::path& path,
                    const std::vector<std::pair<std::string, TensorView>>& tensors,
                    std::map<std::string, std::string> notes);

// Maps and verifies one. Errors: job.damaged (the checksum is missing or wrong),
// safetensors.*, file.*.
SafetensorsFile ReadStateFile(const std::filesystem::path& path);

// What a job's reader throws about a file: job.damaged.
[[noreturn]] void ThrowDamaged(const std::filesystem::path& path, const std::string& what);

}  // namespace flatquant::compress
