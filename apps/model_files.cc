#include "apps/model_files.h"

#include "flatquant/packed/transforms_file.h"

namespace flatquant {
namespace fs = std::filesystem;

uint64_t WeightFileBytes(const fs::path& directory) {
  uint64_t bytes = 0;
  std::error_code ignored;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory, ignored)) {
    const bool counts = entry.path().extension() == ".safetensors" &&
                        entry.path() != TransformsFile(directory);  // no run reads it
    if (!counts) continue;
    const uintmax_t size = entry.file_size(ignored);
    if (size != static_cast<uintmax_t>(-1)) bytes += size;
  }
  return bytes;
}

}  // namespace flatquant
