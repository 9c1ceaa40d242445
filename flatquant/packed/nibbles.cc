#include "flatquant/packed/nibbles.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "flatquant/base/error.h"

namespace flatquant {
namespace {

// Sign extension of the low nibble: 8..15 become -8..-1.
constexpr int8_t LowNibble(uint8_t byte) { return static_cast<int8_t>(((byte & 15) ^ 8) - 8); }
constexpr int8_t HighNibble(uint8_t byte) { return static_cast<int8_t>(((byte >> 4) ^ 8) - 8); }

uint8_t Byte(const std::byte* packed, int64_t i) { return std::to_integer<uint8_t>(packed[i]); }

bool InRange(int bits, int code) { return code >= SmallestCode(bits) && code <= LargestCode(bits); }

}  // namespace

void PackRow(int bits, const int8_t* codes, int64_t cols, std::byte* packed) noexcept {
  if (!InNibbles(bits)) {
    std::memcpy(packed, codes, static_cast<size_t>(cols));
    return;
  }
  const int64_t pairs = cols / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    const unsigned low = static_cast<uint8_t>(codes[2 * i]) & 15u;
    const unsigned high = static_cast<uint8_t>(codes[2 * i + 1]) & 15u;
    packed[i] = static_cast<std::byte>(low | high << 4);
  }
  if (cols % 2 != 0) {
    packed[pairs] = static_cast<std::byte>(static_cast<uint8_t>(codes[cols - 1]) & 15u);
  }
}

void UnpackRow(int bits, const std::byte* packed, int64_t cols, int8_t* codes) noexcept {
  if (!InNibbles(bits)) {
    std::memcpy(codes, packed, static_cast<size_t>(cols));
    return;
  }
  const int64_t pairs = cols / 2;
  for (int64_t i = 0; i < pairs; ++i) {
    codes[2 * i] = LowNibble(Byte(packed, i));
    codes[2 * i + 1] = HighNibble(Byte(packed, i));
  }
  if (cols % 2 != 0) codes[cols - 1] = LowNibble(Byte(packed, pairs));
}

bool RowIsCanonical(int bits, const std::byte* packed, int64_t cols) noexcept {
  bool good = true;  // no early exit, so that the loops vectorise
  if (!InNibbles(bits)) {
    for (int64_t c = 0; c < cols; ++c) good &= InRange(bits, static_cast<int8_t>(packed[c]));
    return good;
  }
  if (cols % 2 != 0)
    good = Byte(packed, cols / 2) < 16 && InRange(bits, LowNibble(Byte(packed, cols / 2)));
  if (bits == 4) return good;  // every nibble is a 4-bit code
  for (int64_t i = 0; i < cols / 2; ++i) {
    const uint8_t byte = Byte(packed, i);
    good &= InRange(bits, LowNibble(byte));
    good &= InRange(bits, HighNibble(byte));
  }
  return good;
}

Tensor PackCodes(int bits, int64_t rows, int64_t cols, const int8_t* codes) {
  FLATQUANT_CHECK(bits >= 2 && bits <= 8 && rows >= 0 && cols >= 0);
  const int64_t row_bytes = PackedRowBytes(bits, cols);
  std::vector<std::byte> packed(static_cast<size_t>(rows * row_bytes));
  for (int64_t r = 0; r < rows; ++r) {
    PackRow(bits, codes + r * cols, cols, packed.data() + r * row_bytes);
  }
  return Tensor::Own(CodeDType(bits), {rows, row_bytes}, std::move(packed));
}

void DequantizeRow(const PackedLinear& linear, int64_t row, int64_t cols, float* out) {
  if (linear.bits == 16) {
    TensorView view{linear.weight.dtype, {cols}, linear.weight.data};
    view.data += static_cast<uint64_t>(row) * view.bytes();
    view.ToFloat(out);
    return;
  }
  const int64_t row_bytes = PackedRowBytes(linear.bits, cols);
  const std::byte* packed = linear.weight.data + row * row_bytes;
  const int64_t groups = GroupCount(cols, linear.group_size);
  const std::byte* scales = linear.scale.data + static_cast<size_t>(row * groups) * sizeof(float);
  // In pieces, so that no row-long buffer is needed; an even length keeps each
  // piece on a byte boundary.
  constexpr int64_t kPiece = 256;
  int8_t codes[kPiece];
  for (int64_t begin = 0; begin < cols; begin += kPiece) {
    const int64_t n = std::min(kPiece, cols - begin);
    UnpackRow(linear.bits, packed + PackedRowBytes(linear.bits, begin), n, codes);
    for (int64_t i = 0; i < n; ++i) out[begin + i] = static_cast<float>(codes[i]);
  }
  const int64_t group_cols = linear.is_grouped() ? linear.group_size : cols;
  for (int64_t group = 0; group < groups; ++group) {
    float scale;
    std::memcpy(&scale, scales + static_cast<size_t>(group) * sizeof(float), sizeof(float));
    const int64_t begin = group * group_cols;
    const int64_t n = std::min(group_cols, cols - begin);
    for (int64_t i = 0; i < n; ++i) out[begin + i] *= scale;
  }
}

}  // namespace flatquant
