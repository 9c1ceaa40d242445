#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>

namespace flatquant {

// Where an entry of a zip archive lies, in bytes from the start of the file.
struct ZipEntry {
  uint64_t header;  // start of its local header
  uint64_t data;    // start of its data
  uint64_t stored_bytes;
  uint64_t bytes;  // once inflated
  uint32_t crc;
  bool deflated;
};

// Reads and checks every record of an archive (APPNOTE.TXT 6.3: stored and
// deflated entries, zip64): entries lie within the file, before the directory,
// and do not overlap, so that no byte can be read under two names. `where` names
// the file in errors (pth.*, see pth_reader.h).
std::map<std::string, ZipEntry, std::less<>> ReadZipDirectory(std::span<const std::byte> bytes,
                                                              const std::string& where);

}  // namespace flatquant
