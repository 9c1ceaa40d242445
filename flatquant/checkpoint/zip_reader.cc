#include "flatquant/checkpoint/zip_reader.h"

#include <zlib.h>

#include <algorithm>
#include <limits>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/checkpoint/strict_json.h"
#include "flatquant/checkpoint/zip_directory.h"

namespace flatquant {
namespace {

constexpr std::string_view kAgain = "copy the file again";
// False unless `from` is exactly one deflate stream of to.size() bytes.
bool Inflate(std::span<const std::byte> from, std::span<std::byte> to) {
  z_stream stream{};
  if (inflateInit2(&stream, -MAX_WBITS) != Z_OK) throw std::bad_alloc();
  const auto chunk = [](size_t bytes) {
    return static_cast<uInt>(std::min<size_t>(bytes, std::numeric_limits<uInt>::max()));
  };
  size_t read = 0;
  size_t written = 0;
  int status = Z_OK;
  std::byte overflow{};  // lets a stream that is too long show itself
  while (status == Z_OK && written <= to.size()) {
    const bool full = written == to.size();
    stream.next_in = reinterpret_cast<Bytef*>(const_cast<std::byte*>(from.data() + read));
    stream.avail_in = chunk(from.size() - read);
    stream.next_out = reinterpret_cast<Bytef*>(full ? &overflow : to.data() + written);
    stream.avail_out = full ? 1 : chunk(to.size() - written);
    const uInt in = stream.avail_in;
    const uInt out = stream.avail_out;
    status = inflate(&stream, Z_NO_FLUSH);
    read += in - stream.avail_in;
    written += out - stream.avail_out;
  }
  inflateEnd(&stream);
  return status == Z_STREAM_END && read == from.size() && written == to.size();
}

uint32_t Crc(std::span<const std::byte> bytes) {
  return static_cast<uint32_t>(
      crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size()));
}

}  // namespace

ZipReader::ZipReader(std::span<const std::byte> bytes, std::string where)
    : bytes_(bytes), where_(std::move(where)) {
  entries_ = ReadZipDirectory(bytes_, where_);
}

std::span<const std::byte> ZipReader::Read(const std::string& name, const ZipEntry& entry,
                                           std::vector<std::byte>* inflated) const {
  std::span<const std::byte> content = bytes_.subspan(entry.data, entry.stored_bytes);
  if (entry.deflated) {
    inflated->resize(entry.bytes);
    if (!Inflate(content, *inflated)) {
      throw Error("pth.bad_deflate", where_,
                  "entry " + Quoted(name) + " does not inflate to its " +
                      std::to_string(entry.bytes) + " bytes",
                  kAgain);
    }
    content = *inflated;
  }
  if (Crc(content) != entry.crc) {
    throw Error("pth.crc_mismatch", where_,
                "entry " + Quoted(name) + " does not match its checksum: the file is damaged",
                kAgain);
  }
  return content;
}

}  // namespace flatquant
