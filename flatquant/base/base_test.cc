#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <limits>
#include <string>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/checked.h"
#include "flatquant/base/error.h"
#include "flatquant/base/file.h"
#include "flatquant/base/half.h"
#include "flatquant/base/progress.h"
#include "flatquant/base/rng.h"
#include "flatquant/base/tensor.h"
#include "tests/support/shared_data.h"

namespace flatquant {
namespace {

TEST(ErrorTest, MessageSaysWhereWhatAndHint) {
  const Error error("room.problem", "file.bin", "is empty", "download it again");
  EXPECT_STREQ(error.what(), "file.bin: is empty; download it again [room.problem]");
  EXPECT_EQ(error.name(), "room.problem");
}

TEST(CheckedTest, OverflowIsEmpty) {
  EXPECT_EQ(CheckedMul(uint64_t{1} << 32, uint64_t{1} << 32), std::nullopt);
  EXPECT_EQ(CheckedAdd(~uint64_t{0}, 1), std::nullopt);
  const std::vector<int64_t> negative = {3, -1};
  EXPECT_EQ(CheckedElements(negative), std::nullopt);
  const std::vector<int64_t> shape = {3, 0, 5};
  EXPECT_EQ(CheckedElements(shape), 0u);
}

TEST(HalfTest, EveryF16SurvivesARoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto half = static_cast<uint16_t>(bits);
    const float value = F16ToFloat(half);
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(F16ToFloat(FloatToF16(value))));
    } else {
      EXPECT_EQ(FloatToF16(value), half) << bits;
    }
  }
}

// The nearest half of a random float, found by comparing with both neighbours.
TEST(HalfTest, F16RoundsToNearest) {
  Rng rng(1);
  for (int i = 0; i < 100000; ++i) {
    const auto value = static_cast<float>(rng.Normal() * std::exp(rng.Normal() * 5));
    if (std::abs(value) > 65000) continue;
    const uint16_t half = FloatToF16(value);
    const float error = std::abs(F16ToFloat(half) - value);
    EXPECT_LE(error, std::abs(F16ToFloat(half + 1) - value)) << value;
    if ((half & 0x7fff) != 0) {
      EXPECT_LE(error, std::abs(F16ToFloat(half - 1) - value)) << value;
    }
  }
}

TEST(HalfTest, EveryBF16SurvivesARoundTripAndTiesGoToEven) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float value = BF16ToFloat(static_cast<uint16_t>(bits));
    if (!std::isnan(value)) {
      EXPECT_EQ(FloatToBF16(value), bits);
    }
  }
  EXPECT_EQ(FloatToBF16(1.0f + 0x1p-8f), 0x3f80);  // tie, down to even
  EXPECT_EQ(FloatToBF16(1.0f + 0x3p-8f), 0x3f82);  // tie, up to even
  EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(std::numeric_limits<float>::quiet_NaN()))));
}

TEST(AtomicFileTest, AppearsOnlyOnCommit) {
  const auto folder = testing::ScratchFolder();
  const auto path = folder / "a.txt";
  {
    AtomicFile file(path);
    file.Write("new");
    EXPECT_FALSE(std::filesystem::exists(path));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder));
  AtomicFile file(path);
  file.Write("new");
  file.Commit();
  EXPECT_EQ(ReadFile(path), "new");
}

TEST(AtomicFileTest, MissingFolderIsAnError) {
  EXPECT_THROW(AtomicFile("/nonexistent-folder/a"), Error);
}

TEST(MappedFileTest, EmptyAndMissing) {
  const auto folder = testing::ScratchFolder();
  { AtomicFile(folder / "empty").Commit(); }
  EXPECT_TRUE(MappedFile::Open(folder / "empty").bytes().empty());
  EXPECT_THROW(MappedFile::Open(folder / "missing"), Error);
  EXPECT_THROW(MappedFile::Open(folder), Error);
}

// Resident kilobytes of the mapping at an address.
long ResidentKilobytes(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  std::string line;
  bool here = false;
  while (std::getline(maps, line)) {
    unsigned long begin, end;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      const auto at = reinterpret_cast<unsigned long>(address);
      here = begin <= at && at < end;
    }
    if (here && line.starts_with("Rss:")) return std::stol(line.substr(4));
  }
  return -1;
}

TEST(MappedFileTest, ReleasedPagesComeBackFromTheFile) {
  const auto folder = testing::ScratchFolder();
  {
    AtomicFile file(folder / "big");
    file.Write(std::string(1 << 20, 'x'));
    file.Commit();
  }
  const MappedFile file = MappedFile::Open(folder / "big");
  const auto sum = [&] {
    long total = 0;
    for (std::byte byte : file.bytes()) total += static_cast<long>(byte);
    return total;
  };
  EXPECT_EQ(sum(), 'x' * (1l << 20));
  EXPECT_GE(ResidentKilobytes(file.bytes().data()), 1024);
  MappedFile::ReleasePages(file.bytes().data(), file.bytes().size());
  EXPECT_LT(ResidentKilobytes(file.bytes().data()), 64);
  EXPECT_EQ(sum(), 'x' * (1l << 20));
  // Memory that no file is behind keeps its contents.
  const std::vector<std::byte> own(1 << 20, std::byte{7});
  MappedFile::ReleasePages(own.data(), own.size());
  EXPECT_EQ(own[own.size() / 2], std::byte{7});
  // Nor does a range that leaves the file.
  MappedFile::ReleasePages(file.bytes().data(), file.bytes().size() + 1);
  EXPECT_GE(ResidentKilobytes(file.bytes().data()), 1024);
}

TEST(AlignedBufferTest, IsZeroedAndAligned) {
  for (size_t n : {1u, 100u, 3u << 20}) {
    AlignedBuffer<uint8_t> buffer(n);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % 64, 0u);
    for (size_t i = 0; i < n; ++i) ASSERT_EQ(buffer[i], 0);
    std::fill(buffer.begin(), buffer.end(), uint8_t{9});  // so that reuse would show
  }
}

TEST(RngTest, BelowIsInRangeAndUniformIsUniform) {
  Rng rng(7);
  double sum = 0;
  for (int i = 0; i < 10000; ++i) {
    EXPECT_LT(rng.Below(13), 13u);
    sum += rng.Uniform();
  }
  EXPECT_NEAR(sum / 10000, 0.5, 0.02);  // 0.5 +- 7 standard errors
}

TEST(TensorTest, OwnsAndConverts) {
  const Tensor tensor = Tensor::Own<uint16_t>(DType::kBF16, {2}, {0x3f80, 0xc000});
  EXPECT_THAT(tensor.ToFloat(), ::testing::ElementsAre(1.0f, -2.0f));
  EXPECT_EQ(tensor.ShapeString(), "[2]");
}

TEST(FormatTest, DurationsAndBytes) {
  EXPECT_EQ(FormatDuration(3.21), "3.2s");
  EXPECT_EQ(FormatDuration(245), "4:05");
  EXPECT_EQ(FormatDuration(3723), "1:02:03");
  EXPECT_EQ(FormatBytes(13910360), "13.9 MB");
}

}  // namespace
}  // namespace flatquant
