#pragma once

#include <cstddef>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "flatquant/checkpoint/zip_directory.h"

namespace flatquant {

// The entries of a zip archive in memory, and their data. For the errors (pth.*)
// see pth_reader.h.
class ZipReader {
 public:
  // bytes must outlive the reader; where names the file in errors.
  ZipReader(std::span<const std::byte> bytes, std::string where);

  const std::map<std::string, ZipEntry, std::less<>>& entries() const { return entries_; }

  // The data of an entry, its checksum verified. A stored entry is a view of the
  // archive; a deflated one is inflated into *inflated, which must then outlive
  // the view. Inflating takes entry.bytes of memory: the caller checks that first.
  std::span<const std::byte> Read(const std::string& name, const ZipEntry& entry,
                                  std::vector<std::byte>* inflated) const;

 private:
  std::span<const std::byte> bytes_;
  std::string where_;
  std::map<std::string, ZipEntry, std::less<>> entries_;
};

}  // namespace flatquant
