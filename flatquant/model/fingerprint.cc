#include "flatquant/model/fingerprint.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "flatquant/base/file.h"

namespace flatquant {
namespace fs = std::filesystem;

namespace {

// Headers say where tensors lie; a megabyte holds those of thousands.
constexpr size_t kHeadBytes = size_t{1} << 20;
constexpr size_t kSamples = 1000;
constexpr size_t kSampleBytes = 64;

}  // namespace

void Fingerprint::Add(std::span<const std::byte> bytes) {
  Add(static_cast<uint64_t>(bytes.size()));
  while (!bytes.empty()) {
    uint64_t word = 0;
    const size_t count = std::min(bytes.size(), sizeof(word));
    std::memcpy(&word, bytes.data(), count);
    Add(word);
    bytes = bytes.subspan(count);
  }
}

uint64_t ModelFingerprint(const fs::path& directory) {
  Fingerprint fingerprint;
  const std::string config = ReadFile(directory / "config.json");
  fingerprint.Add(std::as_bytes(std::span(config)));
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(directory)) {
    if (entry.path().extension() == ".safetensors") files.push_back(entry.path());
  }
  std::sort(files.begin(), files.end());
  for (const fs::path& path : files) {
    const std::string name = path.filename().string();
    fingerprint.Add(std::as_bytes(std::span(name)));
    const MappedFile file = MappedFile::Open(path);
    const std::span<const std::byte> bytes = file.bytes();
    fingerprint.Add(static_cast<uint64_t>(bytes.size()));
    fingerprint.Add(bytes.first(std::min(bytes.size(), kHeadBytes)));
    if (bytes.size() < kSampleBytes) continue;
    const size_t last = bytes.size() - kSampleBytes;
    for (size_t i = 0; i < kSamples; ++i) {
      const size_t at = last / (kSamples - 1) * i + last % (kSamples - 1) * i / (kSamples - 1);
      fingerprint.Add(bytes.subspan(at, kSampleBytes));
    }
  }
  return fingerprint.value();
}

}  // namespace flatquant
