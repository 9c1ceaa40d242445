#include "flatquant/checkpoint/zip_directory.h"

#include <algorithm>
#include <string_view>
#include <utility>
#include <vector>

#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"

namespace flatquant {
namespace {

constexpr std::string_view kAgain = "copy the file again";
constexpr uint32_t kSaturated32 = 0xffffffff;  // "see the zip64 field"
constexpr uint16_t kSaturated16 = 0xffff;

// Sizes of the fixed parts of the records, and their signatures.
constexpr uint64_t kEndSize = 22;
constexpr uint64_t kEnd64Size = 56;
constexpr uint64_t kLocatorSize = 20;
constexpr uint64_t kCentralSize = 46;
constexpr uint64_t kLocalSize = 30;
constexpr uint32_t kEndSignature = 0x06054b50;
constexpr uint32_t kEnd64Signature = 0x06064b50;
constexpr uint32_t kLocatorSignature = 0x07064b50;
constexpr uint32_t kCentralSignature = 0x02014b50;
constexpr uint32_t kLocalSignature = 0x04034b50;

// Deflate cannot do better than 258 bytes from two bits.
constexpr uint64_t kMaxDeflateRatio = 1032;

// Little-endian numbers out of a range that the caller has checked.
template <typename T>
T Get(std::span<const std::byte> bytes, uint64_t offset) {
  T value = 0;
  for (size_t i = 0; i < sizeof(T); ++i) {
    value =
        static_cast<T>(value | static_cast<T>(std::to_integer<T>(bytes[offset + i]) << (8 * i)));
  }
  return value;
}

struct Directory {
  uint64_t offset;
  uint64_t size;
  uint64_t count;
};

class DirectoryParser {
 public:
  DirectoryParser(std::span<const std::byte> bytes, const std::string& where)
      : bytes_(bytes), where_(where) {}

  std::map<std::string, ZipEntry, std::less<>> Parse() {
    const Directory directory = FindDirectory();
    std::map<std::string, ZipEntry, std::less<>> entries;
    uint64_t at = directory.offset;
    const uint64_t end = directory.offset + directory.size;
    for (uint64_t i = 0; i < directory.count; ++i) {
      auto [name, entry] = ParseEntry(&at, end);
      entry.data = DataOffset(name, entry, directory.offset);
      if (!entries.emplace(name, entry).second) {
        throw Error("pth.duplicate_entry", where_, "the archive has two entries " + Quoted(name),
                    kAgain);
      }
    }
    if (at != end) Bad("the archive's directory is longer than its entries");
    CheckOverlap(entries);
    return entries;
  }

 private:
  [[noreturn]] void Bad(const std::string& what) const {
    throw Error("pth.bad_zip", where_, what, kAgain);
  }

  // The end record is the last thing in the file, but for a comment whose length
  // it gives.
  uint64_t FindEnd() const {
    if (bytes_.size() >= kEndSize) {
      const uint64_t last = bytes_.size() - kEndSize;
      const uint64_t first = last - std::min<uint64_t>(last, kSaturated16);
      for (uint64_t at = last + 1; at-- > first;) {
        if (Get<uint32_t>(bytes_, at) == kEndSignature &&
            Get<uint16_t>(bytes_, at + 20) == last - at) {
          return at;
        }
      }
    }
    throw Error("pth.not_zip", where_, "is not a zip archive, or is truncated",
                "copy it again, or save it with torch.save of PyTorch 1.6 or later");
  }

  Directory FindDirectory() const {
    const uint64_t end = FindEnd();
    if (Get<uint16_t>(bytes_, end + 4) != 0 || Get<uint16_t>(bytes_, end + 6) != 0) {
      Bad("the archive is one part of several");
    }
    Directory directory{Get<uint32_t>(bytes_, end + 16), Get<uint32_t>(bytes_, end + 12),
                        Get<uint16_t>(bytes_, end + 10)};
    uint64_t directory_end = end;
    if (end >= kLocatorSize && Get<uint32_t>(bytes_, end - kLocatorSize) == kLocatorSignature) {
      directory_end = Get<uint64_t>(bytes_, end - kLocatorSize + 8);
      directory = FindDirectory64(directory_end, end - kLocatorSize, directory);
    }
    const auto computed_end = CheckedAdd(directory.offset, directory.size);
    if (!computed_end || *computed_end != directory_end) {
      Bad("the archive's directory does not end where its end record starts");
    }
    return directory;
  }

  // at: where the locator puts the zip64 end record; limit: where the locator
  // starts; narrow: the ordinary record's fields, which must agree where they can.
  Directory FindDirectory64(uint64_t at, uint64_t limit, const Directory& narrow) const {
    if (limit < kEnd64Size || at > limit - kEnd64Size ||
        Get<uint32_t>(bytes_, at) != kEnd64Signature) {
      Bad("the archive's zip64 end record is not where its locator says");
    }
    const Directory wide{Get<uint64_t>(bytes_, at + 48), Get<uint64_t>(bytes_, at + 40),
                         Get<uint64_t>(bytes_, at + 32)};
    if ((narrow.offset != kSaturated32 && narrow.offset != wide.offset) ||
        (narrow.size != kSaturated32 && narrow.size != wide.size) ||
        (narrow.count != kSaturated16 && narrow.count != wide.count)) {
      Bad("the archive's two end records disagree");
    }
    return wide;
  }

  // The directory's record at *at, which it moves past; without `data`.
  std::pair<std::string, ZipEntry> ParseEntry(uint64_t* at, uint64_t end) const {
    const uint64_t start = *at;
    if (end - start < kCentralSize || Get<uint32_t>(bytes_, start) != kCentralSignature) {
      Bad("the archive's directory has fewer entries than it claims");
    }
    const uint64_t name_bytes = Get<uint16_t>(bytes_, start + 28);
    const uint64_t extra_bytes = Get<uint16_t>(bytes_, start + 30);
    const uint64_t comment_bytes = Get<uint16_t>(bytes_, start + 32);
    if (end - start - kCentralSize < name_bytes + extra_bytes + comment_bytes) {
      Bad("the archive's directory ends inside an entry");
    }
    std::string name(reinterpret_cast<const char*>(bytes_.data()) + start + kCentralSize,
                     name_bytes);
    if (Get<uint16_t>(bytes_, start + 8) & 1u) {
      throw Error("pth.encrypted", where_, "entry " + Quoted(name) + " is encrypted",
                  "save it without a password");
    }
    const uint16_t method = Get<uint16_t>(bytes_, start + 10);
    if (method != 0 && method != 8) {
      throw Error("pth.unsupported_compression", where_,
                  "entry " + Quoted(name) + " uses compression method " + std::to_string(method),
                  "save it stored or deflated");
    }
    ZipEntry entry{};
    entry.deflated = method == 8;
    entry.crc = Get<uint32_t>(bytes_, start + 16);
    entry.stored_bytes = Get<uint32_t>(bytes_, start + 20);
    entry.bytes = Get<uint32_t>(bytes_, start + 24);
    entry.header = Get<uint32_t>(bytes_, start + 42);
    ReadZip64Extra(name, bytes_.subspan(start + kCentralSize + name_bytes, extra_bytes), &entry);
    if (!entry.deflated && entry.bytes != entry.stored_bytes) {
      Bad("entry " + Quoted(name) + " is stored but has two sizes");
    }
    if (entry.deflated && entry.bytes / kMaxDeflateRatio > entry.stored_bytes) {
      throw Error("pth.bad_deflate", where_,
                  "entry " + Quoted(name) + " claims to inflate " +
                      std::to_string(entry.stored_bytes) + " bytes to " +
                      std::to_string(entry.bytes) + ", which deflate cannot",
                  kAgain);
    }
    *at = start + kCentralSize + name_bytes + extra_bytes + comment_bytes;
    return {std::move(name), entry};
  }

  // Replaces the saturated fields, in the order that the specification gives.
  void ReadZip64Extra(const std::string& name, std::span<const std::byte> extra,
                      ZipEntry* entry) const {
    std::vector<uint64_t*> wanted;
    for (uint64_t* field : {&entry->bytes, &entry->stored_bytes, &entry->header}) {
      if (*field == kSaturated32) wanted.push_back(field);
    }
    for (uint64_t at = 0; !wanted.empty() && extra.size() - at >= 4;) {
      const uint16_t id = Get<uint16_t>(extra, at);
      const uint64_t size = Get<uint16_t>(extra, at + 2);
      at += 4;
      if (extra.size() - at < size) break;
      if (id == 1 && size >= 8 * wanted.size()) {
        for (size_t i = 0; i < wanted.size(); ++i) *wanted[i] = Get<uint64_t>(extra, at + 8 * i);
        return;
      }
      at += size;
    }
    if (!wanted.empty()) Bad("entry " + Quoted(name) + " lacks its zip64 sizes");
  }

  uint64_t DataOffset(const std::string& name, const ZipEntry& entry, uint64_t limit) const {
    const auto outside = [&] {
      return Error("pth.entry_out_of_bounds", where_,
                   "entry " + Quoted(name) + " lies outside the archive's data", kAgain);
    };
    if (limit < kLocalSize || entry.header > limit - kLocalSize) throw outside();
    if (Get<uint32_t>(bytes_, entry.header) != kLocalSignature) {
      Bad("entry " + Quoted(name) + " has no header where the directory says");
    }
    const uint64_t name_bytes = Get<uint16_t>(bytes_, entry.header + 26);
    const uint64_t data =
        entry.header + kLocalSize + name_bytes + Get<uint16_t>(bytes_, entry.header + 28);
    if (data > limit || entry.stored_bytes > limit - data) throw outside();
    const auto* local_name =
        reinterpret_cast<const char*>(bytes_.data()) + entry.header + kLocalSize;
    if (std::string_view(local_name, name_bytes) != name ||
        (Get<uint16_t>(bytes_, entry.header + 8) == 8) != entry.deflated) {
      Bad("entry " + Quoted(name) + " has a header that disagrees with the directory");
    }
    return data;
  }

  void CheckOverlap(const std::map<std::string, ZipEntry, std::less<>>& entries) const {
    std::vector<std::pair<uint64_t, uint64_t>> ranges;  // of header and data together
    for (const auto& [name, entry] : entries) {
      ranges.emplace_back(entry.header, entry.data + entry.stored_bytes);
    }
    std::sort(ranges.begin(), ranges.end());
    for (size_t i = 1; i < ranges.size(); ++i) {
      if (ranges[i].first < ranges[i - 1].second) {
        throw Error("pth.entry_overlap", where_,
                    "two entries of the archive overlap at byte " + std::to_string(ranges[i].first),
                    kAgain);
      }
    }
  }

  std::span<const std::byte> bytes_;
  const std::string& where_;
};

}  // namespace

std::map<std::string, ZipEntry, std::less<>> ReadZipDirectory(std::span<const std::byte> bytes,
                                                              const std::string& where) {
  return DirectoryParser(bytes, where).Parse();
}

}  // namespace flatquant
