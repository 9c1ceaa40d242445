#include "flatquant/checkpoint/zip_reader.h"

#include <gtest/gtest.h>

#include <string>

#include "flatquant/checkpoint/crafted_files_for_test.h"

namespace flatquant {
namespace {

using testing::CraftedEntry;
using testing::CraftedZip;
using testing::ErrorName;

std::string ReadEntry(const std::string& file, const std::string& name) {
  const ZipReader zip(std::as_bytes(std::span(file)), "crafted.pth");
  std::vector<std::byte> inflated;
  const auto bytes = zip.Read(name, zip.entries().at(name), &inflated);
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

// The error of opening the archive and reading all its entries.
std::string ErrorOf(const std::string& file) {
  return ErrorName([&] {
    const ZipReader zip(std::as_bytes(std::span(file)), "crafted.pth");
    std::vector<std::byte> inflated;
    for (const auto& [name, entry] : zip.entries()) zip.Read(name, entry, &inflated);
  });
}

std::string ErrorOf(const CraftedZip& zip) { return ErrorOf(zip.Bytes()); }

// An archive of three entries, the second changed by the test.
template <typename F>
std::string ErrorWith(F change) {
  CraftedZip zip{{{"a/1", "first"}, {"a/2", "the second"}, {"a/3", "3"}}};
  change(zip.entries[1]);
  return ErrorOf(zip);
}

const std::string kLong(100'000, 'z');

TEST(ZipReaderTest, StoredAndDeflated) {
  const std::string file =
      CraftedZip{{{"a", "stored"}, {"b", kLong, true}, {"c", ""}, {"d", "", true}}}.Bytes();
  EXPECT_LT(file.size(), 2000u);
  EXPECT_EQ(ReadEntry(file, "a"), "stored");
  EXPECT_EQ(ReadEntry(file, "b"), kLong);
  EXPECT_EQ(ReadEntry(file, "c"), "");
  EXPECT_EQ(ReadEntry(file, "d"), "");
}

TEST(ZipReaderTest, EmptyArchive) { EXPECT_EQ(ErrorOf(CraftedZip{}), ""); }

TEST(ZipReaderTest, Comment) {
  CraftedZip zip{{{"a", "x"}}};
  zip.comment = std::string(65535, 'c');
  EXPECT_EQ(ReadEntry(zip.Bytes(), "a"), "x");
}

TEST(ZipReaderTest, Zip64) {
  CraftedZip zip{{{"a", "first"}, {"b", kLong, true}}};
  zip.zip64 = true;
  EXPECT_EQ(ReadEntry(zip.Bytes(), "b"), kLong);
  zip.entries[0].zip64 = zip.entries[1].zip64 = true;
  EXPECT_EQ(ReadEntry(zip.Bytes(), "a"), "first");
  EXPECT_EQ(ReadEntry(zip.Bytes(), "b"), kLong);
}

TEST(ZipReaderTest, NotZip) {
  EXPECT_EQ(ErrorOf(std::string()), "pth.not_zip");
  EXPECT_EQ(ErrorOf(std::string("PK")), "pth.not_zip");
  EXPECT_EQ(ErrorOf(std::string(100'000, 'x')), "pth.not_zip");
  const std::string good = CraftedZip{{{"a", "x"}}}.Bytes();
  EXPECT_EQ(ErrorOf(good.substr(0, good.size() - 1)), "pth.not_zip");
  EXPECT_EQ(ErrorOf(good + "x"), "pth.not_zip");
}

TEST(ZipReaderTest, ContradictingRecords) {
  const CraftedZip good{{{"a", "x"}, {"b", "y"}}};
  ASSERT_EQ(ErrorOf(good), "");
  for (const bool zip64 : {false, true}) {
    for (const int64_t error : {-1, 1}) {
      CraftedZip zip = good;
      zip.zip64 = zip64;
      zip.count_error = error;
      EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
      zip.count_error = 0;
      zip.directory_offset_error = error;
      EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
      zip.directory_offset_error = 0;
      zip.directory_size_error = error;
      EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
      zip.directory_offset_error = -error;  // ends right, starts wrong
      EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
    }
  }
  CraftedZip zip = good;
  zip.disk = 1;
  EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
  // Something between directory and end record.
  std::string gap = good.Bytes();
  gap.insert(gap.size() - 22, "junk");
  EXPECT_EQ(ErrorOf(gap), "pth.bad_zip");
}

TEST(ZipReaderTest, Zip64EndRecordElsewhere) {
  for (const int64_t error : {int64_t{-1}, int64_t{1}, int64_t{1} << 62, int64_t{-1000}}) {
    CraftedZip zip{{{"a", "x"}}};
    zip.zip64 = true;
    zip.end64_offset_error = error;
    EXPECT_EQ(ErrorOf(zip), "pth.bad_zip") << error;
  }
}

TEST(ZipReaderTest, HugeNumbersDoNotWrap) {
  CraftedZip zip{{{"a", "x"}}};
  zip.zip64 = true;
  zip.directory_offset_error = -100;  // wraps to nearly 2^64
  zip.directory_size_error = 100;
  EXPECT_EQ(ErrorOf(zip), "pth.bad_zip");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) {
              entry.zip64 = true;
              entry.offset_error = -1000;
            }),
            "pth.entry_out_of_bounds");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) {
              entry.zip64 = true;
              entry.stored_error = entry.bytes_error = -100;
            }),
            "pth.entry_out_of_bounds");
}

TEST(ZipReaderTest, EntryOutOfBounds) {
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.offset_error = 10'000; }),
            "pth.entry_out_of_bounds");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.stored_error = entry.bytes_error = 10'000; }),
            "pth.entry_out_of_bounds");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.offset_error = 1; }), "pth.bad_zip");
}

TEST(ZipReaderTest, HeaderDisagreesWithDirectory) {
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.local_name = "a/x"; }), "pth.bad_zip");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.bytes_error = 1; }), "pth.bad_zip");
}

TEST(ZipReaderTest, Overlap) {
  // One byte into the next entry's header.
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.stored_error = entry.bytes_error = 1; }),
            "pth.entry_overlap");
  // Two directory entries for one local header, as a zip bomb has them: it has the
  // name of one of them only.
  CraftedZip bomb{{{"a", kLong, true}, {"b", kLong, true}}};
  ASSERT_EQ(ErrorOf(bomb), "");
  bomb.entries[1].offset_error = -static_cast<int64_t>(30 + 1 + testing::Deflated(kLong).size());
  EXPECT_EQ(ErrorOf(bomb), "pth.bad_zip");
}

TEST(ZipReaderTest, DuplicateEntry) {
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.name = entry.local_name = "a/1"; }),
            "pth.duplicate_entry");
}

TEST(ZipReaderTest, EncryptedAndUnsupported) {
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.flags = 1; }), "pth.encrypted");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.method = 12; }),
            "pth.unsupported_compression");
}

TEST(ZipReaderTest, CrcMismatch) {
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.crc_error = 1; }), "pth.crc_mismatch");
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) {
              entry.deflated = true;
              entry.crc_error = 1u << 31;
            }),
            "pth.crc_mismatch");
}

TEST(ZipReaderTest, BadDeflate) {
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) { entry.method = 8; }), "pth.bad_deflate");
  for (const int64_t error : {-1, 1}) {
    EXPECT_EQ(ErrorWith([&](CraftedEntry& entry) {
                entry.deflated = true;
                entry.bytes_error = error;
              }),
              "pth.bad_deflate");
  }
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) {
              entry.deflated = true;
              entry.stored_error = -1;
            }),
            "pth.bad_deflate");
  // A size that no deflate stream of this length has: refused before any memory
  // is taken.
  EXPECT_EQ(ErrorWith([](CraftedEntry& entry) {
              entry.deflated = true;
              entry.zip64 = true;
              entry.bytes_error = int64_t{1} << 60;
            }),
            "pth.bad_deflate");
}

TEST(ZipReaderTest, DamagedArchivesNeverCrash) {
  CraftedZip zip{{{"a/1", "first"}, {"a/2", "deflated deflated deflated", true}}};
  for (const bool zip64 : {false, true}) {
    zip.zip64 = zip64;
    zip.entries[0].zip64 = zip64;
    const std::string good = zip.Bytes();
    ASSERT_EQ(ErrorOf(good), "");
    int refused = 0;
    for (size_t i = 0; i < good.size(); ++i) {
      EXPECT_NE(ErrorOf(good.substr(0, i)), "") << "prefix of " << i;
      for (const int flip : {0x01, 0x80, 0xff}) {
        std::string damaged = good;
        damaged[i] = static_cast<char>(damaged[i] ^ flip);
        if (!ErrorOf(damaged).empty()) ++refused;
      }
    }
    EXPECT_GT(refused, 300);
  }
}

}  // namespace
}  // namespace flatquant
