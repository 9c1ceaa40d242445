#include "flatquant/checkpoint/safetensors.h"

#include <algorithm>
#include <memory>
#include <tuple>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/checkpoint/safetensors_header.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

constexpr uint64_t kLengthBytes = 8;
constexpr std::string_view kDownloadAgain = "download the file again";
constexpr std::string_view kMalformed = "the file is malformed; write it again with safetensors";

std::string Bytes(uint64_t n) { return std::to_string(n) + " bytes"; }

uint64_t HeaderLength(std::span<const std::byte> bytes, const std::string& where) {
  if (bytes.size() < kLengthBytes) {
    throw Error("safetensors.truncated", where,
                "has only " + Bytes(bytes.size()) + ", too few for a safetensors file",
                kDownloadAgain);
  }
  uint64_t length = 0;
  for (size_t i = 0; i < kLengthBytes; ++i) {
    length |= std::to_integer<uint64_t>(bytes[i]) << (8 * i);
  }
  if (length > kMaxSafetensorsHeader) {
    throw Error("safetensors.header_too_large", where,
                "claims a header of " + Bytes(length) + ", more than the " +
                    std::to_string(kMaxSafetensorsHeader) + " allowed",
                "check that it is a safetensors file");
  }
  if (length > bytes.size() - kLengthBytes) {
    throw Error(
        "safetensors.header_truncated", where,
        "claims a header of " + Bytes(length) + " but has " + Bytes(bytes.size()) + " in all",
        kDownloadAgain);
  }
  return length;
}

// One entry on its own: the offsets are in order, within the data, and span what
// shape and dtype ask for.
void CheckEntry(const SafetensorsLayout::Entry& entry, uint64_t data_bytes,
                const std::string& where) {
  const std::string tensor = "tensor " + Quoted(entry.name);
  const auto elements = CheckedElements(entry.shape);
  const auto expected = elements ? CheckedMul(*elements, DTypeSize(entry.dtype)) : std::nullopt;
  if (!expected) {
    throw Error("safetensors.shape_overflow", where,
                tensor + " has a shape whose size does not fit 64 bits", kMalformed);
  }
  if (entry.begin > entry.end) {
    throw Error("safetensors.bad_offsets", where,
                tensor + " begins at byte " + std::to_string(entry.begin) + ", after its end at " +
                    std::to_string(entry.end),
                kMalformed);
  }
  if (entry.end - entry.begin != *expected) {
    throw Error("safetensors.size_mismatch", where,
                tensor + " spans " + Bytes(entry.end - entry.begin) + " but its shape and dtype " +
                    std::string(DTypeName(entry.dtype)) + " need " + std::to_string(*expected),
                kMalformed);
  }
  if (entry.end > data_bytes) {
    throw Error("safetensors.out_of_bounds", where,
                tensor + " ends at byte " + std::to_string(entry.end) + " of the data, past the " +
                    std::to_string(data_bytes) + " that the file holds",
                "the file is probably truncated; download it again");
  }
}

// All entries together: in the order of their bytes, each begins where the last
// one ended, and the last one ends where the file does.
void CheckCoverage(const std::vector<SafetensorsLayout::Entry>& entries, uint64_t data_bytes,
                   const std::string& where) {
  uint64_t covered = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const auto& entry = entries[i];
    if (entry.begin < covered) {
      throw Error(
          "safetensors.overlap", where,
          "tensors " + Quoted(entries[i - 1].name) + " and " + Quoted(entry.name) + " overlap",
          kMalformed);
    }
    if (entry.begin > covered) {
      throw Error("safetensors.hole", where,
                  Bytes(entry.begin - covered) + " before tensor " + Quoted(entry.name) +
                      " belong to no tensor",
                  kMalformed);
    }
    covered = entry.end;
  }
  if (covered < data_bytes) {
    throw Error("safetensors.trailing_bytes", where,
                Bytes(data_bytes - covered) + " after the last tensor belong to no tensor",
                kMalformed);
  }
}

}  // namespace

SafetensorsLayout ParseSafetensors(std::span<const std::byte> bytes, const std::string& where) {
  const uint64_t header_bytes = HeaderLength(bytes, where);
  const uint64_t data_start = kLengthBytes + header_bytes;
  const uint64_t data_bytes = bytes.size() - data_start;
  const auto* text = reinterpret_cast<const char*>(bytes.data()) + kLengthBytes;
  SafetensorsLayout layout = ParseSafetensorsHeader({text, header_bytes}, where);
  for (const auto& entry : layout.entries) CheckEntry(entry, data_bytes, where);

  // By end too, so that an empty tensor comes before its neighbour.
  std::sort(layout.entries.begin(), layout.entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  CheckCoverage(layout.entries, data_bytes, where);
  for (auto& entry : layout.entries) {
    entry.begin += data_start;
    entry.end += data_start;
  }
  return layout;
}

SafetensorsFile OpenSafetensors(const std::filesystem::path& path) {
  const auto mapped = std::make_shared<const MappedFile>(MappedFile::Open(path));
  SafetensorsLayout layout = ParseSafetensors(mapped->bytes(), path.string());
  SafetensorsFile file;
  file.metadata = std::move(layout.metadata);
  file.tensors.reserve(layout.entries.size());
  for (auto& entry : layout.entries) {
    TensorView view{entry.dtype, std::move(entry.shape), mapped->bytes().data() + entry.begin};
    file.tensors.emplace_back(std::move(entry.name), Tensor::Share(std::move(view), mapped));
  }
  return file;
}

}  // namespace flatquant
