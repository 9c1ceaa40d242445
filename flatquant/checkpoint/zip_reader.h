#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace flatquant {

// The entries of a zip archive in memory (APPNOTE.TXT 6.3: stored and deflated
// entries, zip64). Every record is checked when the archive is opened: entries
// lie within the file, before the directory, and do not overlap, so that no byte
// can be read under two names. For the errors (pth.*) see pth_reader.h.
class ZipReader {
 public:
  struct Entry {
    uint64_t header;  // byte at which its local header starts
    uint64_t data;    // byte at which its data start
    uint64_t stored_bytes;
    uint64_t bytes;  // once inflated
    uint32_t crc;
    bool deflated;
  };

  // bytes must outlive the reader; where names the file in errors.
  ZipReader(std::span<const std::byte> bytes, std::string where);

  const std::map<std::string, Entry, std::less<>>& entries() const { return entries_; }

  // The data of an entry, its checksum verified. A stored entry is a view of the
  // archive; a deflated one is inflated into *inflated, which must then outlive
  // the view. Inflating takes entry.bytes of memory: the caller checks that first.
  std::span<const std::byte> Read(const std::string& name, const Entry& entry,
                                  std::vector<std::byte>* inflated) const;

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
  std::map<std::string, Entry, std::less<>> entries_;
};

}  // namespace flatquant
