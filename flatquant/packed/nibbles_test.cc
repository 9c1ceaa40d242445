#include "flatquant/packed/nibbles.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "flatquant/base/half.h"
#include "flatquant/base/rng.h"

namespace flatquant {
namespace {

std::vector<int8_t> RandomCodes(int bits, int64_t n, Rng* rng) {
  std::vector<int8_t> codes(static_cast<size_t>(n));
  const uint64_t range = uint64_t{1} << bits;
  for (int8_t& code : codes) {
    code = static_cast<int8_t>(SmallestCode(bits) + static_cast<int>(rng->Below(range)));
  }
  return codes;
}

TEST(Nibbles, TheBytesOfTheSpecification) {
  // The worked example of FORMAT.md: columns 1, -1, -8, 7, 3 of a 4-bit row.
  const int8_t codes[] = {1, -1, -8, 7, 3};
  std::byte packed[3];
  PackRow(4, codes, 5, packed);
  EXPECT_EQ(packed[0], std::byte{0xf1});
  EXPECT_EQ(packed[1], std::byte{0x78});
  EXPECT_EQ(packed[2], std::byte{0x03});

  const int8_t wide[] = {-128, 127, -1};
  PackRow(8, wide, 3, packed);
  EXPECT_EQ(packed[0], std::byte{0x80});
  EXPECT_EQ(packed[1], std::byte{0x7f});
  EXPECT_EQ(packed[2], std::byte{0xff});
}

TEST(Nibbles, RoundTripAtEveryWidthAndColumnCount) {
  const uint64_t seed = 20240817;
  Rng rng(seed);
  for (int bits = 2; bits <= 8; ++bits) {
    for (int64_t cols = 1; cols <= 131; ++cols) {
      const std::vector<int8_t> codes = RandomCodes(bits, cols, &rng);
      const int64_t bytes = PackedRowBytes(bits, cols);
      // One guard byte on each side: neither direction may touch it.
      std::vector<std::byte> packed(static_cast<size_t>(bytes) + 2, std::byte{0xaa});
      PackRow(bits, codes.data(), cols, packed.data() + 1);
      EXPECT_EQ(packed.front(), std::byte{0xaa});
      EXPECT_EQ(packed.back(), std::byte{0xaa});
      EXPECT_TRUE(RowIsCanonical(bits, packed.data() + 1, cols)) << bits << " " << cols;
      std::vector<int8_t> back(static_cast<size_t>(cols) + 1, 99);
      UnpackRow(bits, packed.data() + 1, cols, back.data());
      EXPECT_EQ(back.back(), 99);
      back.pop_back();
      EXPECT_EQ(back, codes) << "bits " << bits << ", cols " << cols << ", seed " << seed;
    }
  }
}

TEST(Nibbles, CanonicalRefusesCodesBeyondTheRange) {
  Rng rng(7);
  for (int bits : {2, 3, 5, 6, 7}) {
    for (int64_t cols : {1, 2, 7, 64, 65}) {
      for (int outside : {SmallestCode(bits) - 1, LargestCode(bits) + 1}) {
        std::vector<int8_t> codes = RandomCodes(bits, cols, &rng);
        codes[rng.Below(static_cast<uint64_t>(cols))] = static_cast<int8_t>(outside);
        std::vector<std::byte> packed(static_cast<size_t>(PackedRowBytes(bits, cols)));
        PackRow(bits, codes.data(), cols, packed.data());
        EXPECT_FALSE(RowIsCanonical(bits, packed.data(), cols)) << bits << " " << cols;
      }
    }
  }
  std::byte left_over[] = {std::byte{0x21}, std::byte{0x13}};
  EXPECT_FALSE(RowIsCanonical(4, left_over, 3));
  left_over[1] = std::byte{0x03};
  EXPECT_TRUE(RowIsCanonical(4, left_over, 3));
}

TEST(Nibbles, DequantizeMultipliesByTheRowsScale) {
  Rng rng(11);
  for (int bits : {2, 4, 5, 8}) {
    for (int64_t cols : {5, 256, 515}) {
      const int64_t rows = 3;
      const std::vector<int8_t> codes = RandomCodes(bits, rows * cols, &rng);
      PackedLinear linear;
      linear.bits = bits;
      linear.weight = PackCodes(bits, rows, cols, codes.data());
      linear.scale = Tensor::Floats({rows}, {0.5f, 0.25f, 3.0f});
      EXPECT_EQ(linear.weight.dtype, bits <= 4 ? DType::kU8 : DType::kI8);
      std::vector<float> row(static_cast<size_t>(cols));
      const float scales[] = {0.5f, 0.25f, 3.0f};
      for (int64_t r = 0; r < rows; ++r) {
        DequantizeRow(linear, r, cols, row.data());
        for (int64_t c = 0; c < cols; ++c) {
          ASSERT_EQ(row[static_cast<size_t>(c)],
                    scales[r] * static_cast<float>(codes[static_cast<size_t>(r * cols + c)]));
        }
      }
    }
  }
}

TEST(Nibbles, DequantizeWidensFloatWeights) {
  PackedLinear linear;
  linear.weight = Tensor::Own(DType::kBF16, {2, 2},
                              std::vector<uint16_t>{FloatToBF16(1.0f), FloatToBF16(-2.0f),
                                                    FloatToBF16(0.5f), FloatToBF16(8.0f)});
  float row[2];
  DequantizeRow(linear, 1, 2, row);
  EXPECT_EQ(row[0], 0.5f);
  EXPECT_EQ(row[1], 8.0f);
}

}  // namespace
}  // namespace flatquant
