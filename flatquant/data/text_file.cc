#include "flatquant/data/text_file.h"

#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <memory>
#include <string_view>

#include "flatquant/base/error.h"
#include "flatquant/base/file.h"

namespace flatquant {
namespace {

constexpr size_t kChunk = size_t{1} << 18;

[[noreturn]] void FailDamaged(const std::filesystem::path& path, std::string_view what) {
  throw Error("data.bad_compression", path.string(), what, "get the file again");
}

// Collects decompressed bytes up to a limit.
class Output {
 public:
  Output(const std::filesystem::path& path, size_t limit) : path_(path), limit_(limit) {}

  void Append(const char* data, size_t bytes) {
    if (bytes > limit_ - text_.size()) {
      throw Error("file.too_large", path_.string(),
                  "decompresses to more than the " + std::to_string(limit_) + " bytes allowed here",
                  "check that it is the right file, or split it");
    }
    text_.append(data, bytes);
  }

  std::string Take() { return std::move(text_); }

 private:
  const std::filesystem::path& path_;
  size_t limit_;
  std::string text_;
};

std::string Gunzip(std::string_view packed, const std::filesystem::path& path, size_t limit) {
  z_stream stream{};
  constexpr int kGzipOnly = 16 + MAX_WBITS;  // zlib's code for "gzip header, largest window"
  if (inflateInit2(&stream, kGzipOnly) != Z_OK) throw std::bad_alloc();
  const std::unique_ptr<z_stream, int (*)(z_stream*)> closer(&stream, inflateEnd);
  Output output(path, limit);
  std::string chunk(kChunk, '\0');
  size_t next = 0;  // bytes of `packed` that zlib was given
  int status = Z_OK;
  for (;;) {
    if (stream.avail_in == 0 && next < packed.size()) {
      const size_t take = std::min(kChunk, packed.size() - next);
      // zlib's interface is not const-correct; it only reads.
      stream.next_in = const_cast<Bytef*>(reinterpret_cast<const Bytef*>(packed.data()) + next);
      stream.avail_in = static_cast<uInt>(take);
      next += take;
    }
    if (status == Z_STREAM_END) {  // another member may follow
      if (stream.avail_in == 0) break;
      if (inflateReset(&stream) != Z_OK) FailDamaged(path, "is not valid gzip data");
    }
    stream.next_out = reinterpret_cast<Bytef*>(chunk.data());
    stream.avail_out = static_cast<uInt>(chunk.size());
    status = inflate(&stream, Z_NO_FLUSH);
    output.Append(chunk.data(), chunk.size() - stream.avail_out);
    if (status == Z_STREAM_END) continue;
    if (status == Z_BUF_ERROR) {
      FailDamaged(path, "ends in the middle of its gzip data");
    }
    if (status != Z_OK) {
      FailDamaged(path, std::string("is not valid gzip data") +
                            (stream.msg != nullptr ? std::string(" (") + stream.msg + ")" : ""));
    }
  }
  return output.Take();
}

std::string Unzstd(std::string_view packed, const std::filesystem::path& path, size_t limit) {
  const std::unique_ptr<ZSTD_DStream, size_t (*)(ZSTD_DStream*)> stream(ZSTD_createDStream(),
                                                                        ZSTD_freeDStream);
  if (stream == nullptr) throw std::bad_alloc();
  Output output(path, limit);
  std::string chunk(kChunk, '\0');
  ZSTD_inBuffer in{packed.data(), packed.size(), 0};
  size_t left = 1;  // 0 exactly when a frame is complete and flushed
  for (;;) {
    ZSTD_outBuffer out{chunk.data(), chunk.size(), 0};
    left = ZSTD_decompressStream(stream.get(), &out, &in);
    if (ZSTD_isError(left)) {
      FailDamaged(path,
                  std::string("is not valid Zstandard data (") + ZSTD_getErrorName(left) + ")");
    }
    output.Append(chunk.data(), out.pos);
    if (in.pos < in.size || out.pos == out.size) {
      if (left == 0 && in.pos == in.size) break;
      continue;
    }
    if (left != 0) FailDamaged(path, "ends in the middle of its Zstandard data");
    break;
  }
  return output.Take();
}

}  // namespace

std::string ReadTextFile(const std::filesystem::path& path, size_t limit) {
  std::string text = ReadFile(path, limit);
  if (text.starts_with("\x1f\x8b")) {
    text = Gunzip(text, path, limit);
  } else if (text.starts_with("\x28\xb5\x2f\xfd")) {
    text = Unzstd(text, path, limit);
  }
  if (text.starts_with("\xef\xbb\xbf")) text.erase(0, 3);
  return text;
}

}  // namespace flatquant
