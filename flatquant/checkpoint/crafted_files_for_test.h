#pragma once

#include <zlib.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/base/error.h"
#include "tests/support/shared_data.h"

// Files that the tests of this room make up, right and wrong ones.
namespace flatquant::testing {

// The name of the error that f throws, or nothing.
template <typename F>
std::string ErrorName(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.name();
  }
  return "";
}

// Its whole message, or nothing.
template <typename F>
std::string ErrorMessage(F&& f) {
  try {
    f();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline void WriteBytes(const std::filesystem::path& path, std::string_view bytes) {
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
}

inline std::string Little(uint64_t value, int bytes) {
  std::string text;
  for (int i = 0; i < bytes; ++i) text += static_cast<char>(value >> (8 * i));
  return text;
}

// A safetensors file: this header, this many bytes of data (0, 1, 2, ...).
inline std::string SafetensorsBytes(std::string_view header, size_t data_bytes) {
  std::string file = Little(header.size(), 8).append(header);
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

// One entry of a crafted zip archive. The fields after `deflated` lie, where a
// test wants them to.
struct CraftedEntry {
  std::string name = {};
  std::string data = {};
  bool deflated = false;
  bool zip64 = false;  // sizes and offset in the extra field
  int method = -1;     // -1: the right one
  int flags = 0;
  uint32_t crc_error = 0;
  int64_t bytes_error = 0;        // added to the size once inflated
  int64_t stored_error = 0;       // added to the stored size
  int64_t offset_error = 0;       // added to the local header's offset
  std::string local_name = name;  // in the local header
};

inline std::string Deflated(const std::string& data) {
  z_stream stream{};
  deflateInit2(&stream, Z_BEST_COMPRESSION, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string out(deflateBound(&stream, data.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(data.data()));
  stream.avail_in = static_cast<uInt>(data.size());
  stream.next_out = reinterpret_cast<Bytef*>(out.data());
  stream.avail_out = static_cast<uInt>(out.size());
  deflate(&stream, Z_FINISH);
  out.resize(stream.total_out);
  deflateEnd(&stream);
  return out;
}

struct CraftedZip {
  std::vector<CraftedEntry> entries = {};
  bool zip64 = false;  // with a zip64 end record
  std::string comment = {};
  int64_t count_error = 0;
  int64_t directory_offset_error = 0;
  int64_t directory_size_error = 0;
  int64_t end64_offset_error = 0;
  int disk = 0;

  std::string Bytes() const {
    std::string file;
    std::string directory;
    for (const CraftedEntry& entry : entries) Append(entry, &file, &directory);
    const auto offset =
        static_cast<uint64_t>(static_cast<int64_t>(file.size()) + directory_offset_error);
    const auto size =
        static_cast<uint64_t>(static_cast<int64_t>(directory.size()) + directory_size_error);
    const auto count = static_cast<uint64_t>(static_cast<int64_t>(entries.size()) + count_error);
    file += directory;
    if (zip64) {
      const auto end64 =
          static_cast<uint64_t>(static_cast<int64_t>(file.size()) + end64_offset_error);
      file += Little(0x06064b50, 4) + Little(44, 8) + Little(45, 2) + Little(45, 2) + Little(0, 4) +
              Little(0, 4) + Little(count, 8) + Little(count, 8) + Little(size, 8) +
              Little(offset, 8);
      file += Little(0x07064b50, 4) + Little(0, 4) + Little(end64, 8) + Little(1, 4);
    }
    const uint64_t saturated = 0xffffffff;
    file += Little(0x06054b50, 4) + Little(static_cast<uint64_t>(disk), 2) + Little(0, 2) +
            Little(zip64 ? saturated : count, 2) + Little(zip64 ? saturated : count, 2) +
            Little(zip64 ? saturated : size, 4) + Little(zip64 ? saturated : offset, 4) +
            Little(comment.size(), 2) + comment;
    return file;
  }

 private:
  static void Append(const CraftedEntry& entry, std::string* file, std::string* directory) {
    const std::string stored = entry.deflated ? Deflated(entry.data) : entry.data;
    const auto crc = static_cast<uint32_t>(
        crc32_z(0, reinterpret_cast<const Bytef*>(entry.data.data()), entry.data.size()));
    const auto number = [](uint64_t value, int64_t error) {
      return static_cast<uint64_t>(static_cast<int64_t>(value) + error);
    };
    const uint64_t bytes = number(entry.data.size(), entry.bytes_error);
    const uint64_t stored_bytes = number(stored.size(), entry.stored_error);
    const uint64_t offset = number(file->size(), entry.offset_error);
    const int method = entry.method >= 0 ? entry.method : entry.deflated ? 8 : 0;
    const std::string common = Little(static_cast<uint64_t>(entry.flags), 2) +
                               Little(static_cast<uint64_t>(method), 2) + Little(0, 4) +
                               Little(crc ^ entry.crc_error, 4);
    const uint64_t saturated = 0xffffffff;
    *file += Little(0x04034b50, 4) + Little(20, 2) + common + Little(stored_bytes, 4) +
             Little(bytes, 4) + Little(entry.local_name.size(), 2) + Little(0, 2) +
             entry.local_name + stored;
    std::string extra;
    if (entry.zip64) {
      extra = Little(0xcafe, 2) + Little(3, 2) + "abc" +  // somebody else's field first
              Little(1, 2) + Little(24, 2) + Little(bytes, 8) + Little(stored_bytes, 8) +
              Little(offset, 8);
    }
    *directory += Little(0x02014b50, 4) + Little(20, 2) + Little(20, 2) + common +
                  Little(entry.zip64 ? saturated : stored_bytes, 4) +
                  Little(entry.zip64 ? saturated : bytes, 4) + Little(entry.name.size(), 2) +
                  Little(extra.size(), 2) + Little(0, 2) + Little(0, 2) + Little(0, 2) +
                  Little(0, 4) + Little(entry.zip64 ? saturated : offset, 4) + entry.name + extra;
  }
};

// Assembles pickles, one method per instruction that the tests need.
class PickleText {
 public:
  explicit PickleText(int protocol = 2) {
    text = "\x80";
    text += static_cast<char>(protocol);
  }

  PickleText& Raw(std::string_view bytes) {
    text += bytes;
    return *this;
  }
  PickleText& Text(std::string_view value) {
    return Raw("X").Raw(Little(value.size(), 4)).Raw(value);
  }
  PickleText& Int(int32_t value) { return Raw("J").Raw(Little(static_cast<uint32_t>(value), 4)); }
  PickleText& Global(std::string_view module, std::string_view name) {
    return Raw("c").Raw(module).Raw("\n").Raw(name).Raw("\n");
  }
  PickleText& Ints(const std::vector<int32_t>& values) {  // a tuple
    Raw("(");
    for (int32_t value : values) Int(value);
    return Raw("t");
  }
  PickleText& Storage(std::string_view type, std::string_view key, int32_t elements) {
    return Raw("(")
        .Text("storage")
        .Global("torch", type)
        .Text(key)
        .Text("cpu")
        .Int(elements)
        .Raw("tQ");
  }
  // A tensor, the way torch.save writes it.
  PickleText& Tensor(std::string_view type, std::string_view key, int32_t storage_elements,
                     int32_t offset, const std::vector<int32_t>& shape,
                     const std::vector<int32_t>& strides) {
    Global("torch._utils", "_rebuild_tensor_v2").Raw("(");
    Storage(type, key, storage_elements).Int(offset).Ints(shape).Ints(strides).Raw("\x89");
    return Global("collections", "OrderedDict").Raw(")RtR");
  }

  std::string text;
};

// A .pth file of this pickle and these storages, keys "0", "1", ...
inline CraftedZip PthZip(const std::string& pickle, const std::vector<std::string>& storages = {}) {
  CraftedZip zip;
  zip.entries.push_back({"crafted/data.pkl", pickle});
  zip.entries.push_back({"crafted/byteorder", "little"});
  for (size_t i = 0; i < storages.size(); ++i) {
    zip.entries.push_back({"crafted/data/" + std::to_string(i), storages[i]});
  }
  zip.entries.push_back({"crafted/version", "3\n"});
  return zip;
}

}  // namespace flatquant::testing
