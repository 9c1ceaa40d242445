#include "flatquant/data/text_file.h"

#include <gtest/gtest.h>
#include <zlib.h>
#include <zstd.h>

#include <fstream>
#include <functional>
#include <string>

#include "flatquant/base/error.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

namespace fs = std::filesystem;

fs::path Write(const std::string& bytes) {
  const fs::path path = testing::ScratchFolder() / "file";
  std::ofstream(path, std::ios::binary) << bytes;
  return path;
}

std::string Gzip(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, 16 + MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, text.size()) + 64, '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string Zstd(const std::string& text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

std::string ErrorName(const std::function<void()>& body) {
  try {
    body();
  } catch (const Error& error) {
    return error.name();
  }
  return "no error";
}

// Larger than one decompression chunk and not periodic in it.
std::string LongText() {
  std::string text;
  for (int i = 0; text.size() < 1000000; ++i) text += std::to_string(i * 7919) + " ";
  return text;
}

TEST(ReadTextFile, PlainTextAndByteOrderMark) {
  EXPECT_EQ(ReadTextFile(Write("a\nb")), "a\nb");
  EXPECT_EQ(ReadTextFile(Write("\xef\xbb\xbf"
                               "a")),
            "a");
  EXPECT_EQ(ReadTextFile(Write("")), "");
}

TEST(ReadTextFile, GzipAndZstandardByTheirFirstBytes) {
  const std::string text = LongText();
  EXPECT_EQ(ReadTextFile(Write(Gzip(text))), text);
  EXPECT_EQ(ReadTextFile(Write(Zstd(text))), text);
  EXPECT_EQ(ReadTextFile(Write(Gzip(text) + Gzip("tail"))), text + "tail");
  EXPECT_EQ(ReadTextFile(Write(Zstd(text) + Zstd("tail"))), text + "tail");
  EXPECT_EQ(ReadTextFile(Write(Gzip("\xef\xbb\xbf"
                                    "a"))),
            "a");
  EXPECT_EQ(ReadTextFile(Write(Gzip(""))), "");
  EXPECT_EQ(ReadTextFile(Write(Zstd(""))), "");
}

TEST(ReadTextFile, EveryTruncationIsNoticed) {
  for (const std::string& packed : {Gzip("some text, some text, more"), Zstd("some text, more")}) {
    for (size_t keep = 4; keep < packed.size(); ++keep) {
      EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(packed.substr(0, keep))); }),
                "data.bad_compression")
          << keep << " of " << packed.size() << " bytes";
    }
  }
}

TEST(ReadTextFile, DamageIsNoticed) {
  std::string gzip = Gzip(LongText());
  gzip[gzip.size() - 6] ^= 1;  // the checksum
  EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(gzip)); }), "data.bad_compression");
  EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(Gzip("a") + "rubbish")); }), "data.bad_compression");
  EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(Zstd("a") + "rubbish")); }), "data.bad_compression");
}

TEST(ReadTextFile, TheLimitHoldsBeforeAndAfterDecompression) {
  const std::string zeros(100000, 'a');
  EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(zeros), 99999); }), "file.too_large");
  EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(Gzip(zeros)), 99999); }), "file.too_large");
  EXPECT_EQ(ErrorName([&] { ReadTextFile(Write(Zstd(zeros)), 99999); }), "file.too_large");
  EXPECT_EQ(ReadTextFile(Write(Gzip(zeros)), 100000), zeros);
}

TEST(ReadTextFile, MissingFileAndFolder) {
  EXPECT_EQ(ErrorName([] { ReadTextFile("/nonexistent/file"); }), "file.open");
  EXPECT_EQ(ErrorName([] { ReadTextFile(testing::ScratchFolder()); }), "file.open");
}

}  // namespace
}  // namespace flatquant
