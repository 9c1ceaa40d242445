#include "flatquant/compress/job/state_file.h"

#include <fmt/format.h>

#include <algorithm>
#include <span>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/safetensors_writer.h"
#include "flatquant/model/fingerprint.h"

namespace flatquant::compress {
namespace {

using NamedTensors = std::vector<std::pair<std::string, TensorView>>;
constexpr const char* kChecksum = "checksum";

std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

// Over names, types, shapes and bytes of the tensors, by name, and over the notes.
template <typename Notes>
std::string Checksum(NamedTensors tensors, const Notes& notes) {
  std::sort(tensors.begin(), tensors.end(),
            [](const auto& a, const auto& b) { return a.first < b.first; });
  Fingerprint fingerprint;
  for (const auto& [name, tensor] : tensors) {
    fingerprint.Add(Bytes(name));
    fingerprint.Add(Bytes(DTypeName(tensor.dtype)));
    fingerprint.Add(std::as_bytes(std::span(tensor.shape)));
    fingerprint.Add(std::span(tensor.data, tensor.bytes()));
  }
  for (const auto& [key, value] : notes) {
    if (key == kChecksum) continue;
    fingerprint.Add(Bytes(key));
    fingerprint.Add(Bytes(value));
  }
  return fmt::format("{:016x}", fingerprint.value());
}

}  // namespace

void WriteStateFile(const std::filesystem::path& path, const NamedTensors& tensors,
                    std::map<std::string, std::string> notes) {
  FLATQUANT_CHECK(!notes.contains(kChecksum));
  notes[kChecksum] = Checksum(tensors, notes);
  WriteSafetensors(path, tensors, notes);
}

SafetensorsFile ReadStateFile(const std::filesystem::path& path) {
  SafetensorsFile file = OpenSafetensors(path);
  const NamedTensors tensors(file.tensors.begin(), file.tensors.end());
  const auto stored = file.metadata.find(kChecksum);
  if (stored == file.metadata.end()) ThrowDamaged(path, "has no checksum");
  if (stored->second != Checksum(tensors, file.metadata)) {
    ThrowDamaged(path, "does not have the bytes that were written");
  }
  return file;
}

void ThrowDamaged(const std::filesystem::path& path, const std::string& what) {
  throw Error("job.damaged", path.string(), what,
              "delete this file, and what it holds is made again; --resume never starts over");
}

}  // namespace flatquant::compress
