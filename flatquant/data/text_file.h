#pragma once

#include <cstddef>
#include <filesystem>
#include <string>

namespace flatquant {

// The most bytes that a text source may have, before and after decompression: a
// small compressed file must not be able to fill the memory.
inline constexpr size_t kMaxTextBytes = size_t{1} << 30;

// A text file as a string: gzip and Zstandard are recognised by their first
// bytes and decompressed (several members or frames are joined), a UTF-8 byte
// order mark is dropped. The text itself is not checked.
// Errors: file.*, file.too_large, data.bad_compression (damaged or truncated).
std::string ReadTextFile(const std::filesystem::path& path, size_t limit = kMaxTextBytes);

}  // namespace flatquant
