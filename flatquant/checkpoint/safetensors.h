#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "flatquant/base/file.h"
#include "flatquant/base/tensor.h"

namespace flatquant {

// The safetensors format (https://huggingface.co/docs/safetensors): 8 bytes of
// little-endian header length, a JSON header, then the tensors' bytes, without
// gaps. A file is accepted only if all of it is accounted for.
//
// Named errors; each message says the file, the tensor and what to do:
//   safetensors.truncated           shorter than the 8 bytes of the header length
//   safetensors.header_too_large    header length beyond 100,000,000 bytes
//   safetensors.header_truncated    the header ends past the end of the file
//   safetensors.header_not_object   the header does not start with '{'
//   safetensors.header_not_utf8     the header is not valid UTF-8
//   safetensors.header_not_json     the header is not valid JSON
//   safetensors.duplicate_key       a tensor, a field or a metadata key twice
//   safetensors.bad_metadata        __metadata__ does not map strings to strings
//   safetensors.bad_entry           a tensor's entry lacks a field, has one that
//                                   the format does not know, or one of the
//                                   wrong type
//   safetensors.unknown_dtype       a dtype that the project does not read
//   safetensors.bad_shape           a dimension that is not a non-negative integer
//   safetensors.shape_overflow      sizes whose product leaves 64 bits
//   safetensors.bad_offsets         data_offsets are not two non-negative integers
//                                   in ascending order
//   safetensors.size_mismatch       the offsets span another number of bytes than
//                                   shape and dtype ask for
//   safetensors.out_of_bounds       a tensor ends past the end of the file
//   safetensors.overlap             two tensors share bytes
//   safetensors.hole                bytes between two tensors belong to neither
//   safetensors.trailing_bytes      bytes after the last tensor
struct SafetensorsLayout {
  struct Entry {
    std::string name;
    DType dtype;
    std::vector<int64_t> shape;
    uint64_t begin;  // bytes from the start of the file
    uint64_t end;
  };
  std::vector<Entry> entries;  // in the order of their bytes
  std::map<std::string, std::string, std::less<>> metadata;
};

inline constexpr uint64_t kMaxSafetensorsHeader = 100'000'000;

// Validates the bytes of a whole file; `where` names it in errors.
SafetensorsLayout ParseSafetensors(std::span<const std::byte> bytes, const std::string& where);

// A validated file and its tensors, which keep it mapped.
struct SafetensorsFile {
  std::vector<std::pair<std::string, Tensor>> tensors;  // in the order of their bytes
  std::map<std::string, std::string, std::less<>> metadata;
};

// Errors: those above and file.open, file.map.
SafetensorsFile OpenSafetensors(const std::filesystem::path& path);

}  // namespace flatquant
