#pragma once

#include <cstddef>
#include <cstdint>

#include "flatquant/base/dtype.h"
#include "flatquant/base/tensor.h"
#include "flatquant/packed/packed_model.h"

// How signed integers lie in a packed weight (FORMAT.md, "Weight codes"):
//   bits 2..4  two's complement nibbles in U8, even column in the low nibble;
//              the high nibble that an odd width leaves over is zero
//   bits 5..8  one I8 per column
namespace flatquant {

// The range of a b-bit code: [-2^(b-1), 2^(b-1) - 1].
constexpr int SmallestCode(int bits) { return -(1 << (bits - 1)); }
constexpr int LargestCode(int bits) { return (1 << (bits - 1)) - 1; }

// Whether codes of this width travel as nibbles.
constexpr bool InNibbles(int bits) { return bits <= 4; }

constexpr DType CodeDType(int bits) { return InNibbles(bits) ? DType::kU8 : DType::kI8; }

// Bytes of one stored row.
constexpr int64_t PackedRowBytes(int bits, int64_t cols) {
  return InNibbles(bits) ? cols / 2 + cols % 2 : cols;
}

// codes: cols integers within the range of `bits` (2..8); packed:
// PackedRowBytes(bits, cols) bytes. No overlap. Values outside the range are cut
// to the low 4 (nibbles) or 8 bits.
void PackRow(int bits, const int8_t* codes, int64_t cols, std::byte* packed) noexcept;

// The inverse. Nibbles are widened with their sign whatever `bits` says.
void UnpackRow(int bits, const std::byte* packed, int64_t cols, int8_t* codes) noexcept;

// Whether a stored row holds only codes of the range, and zero in a left-over nibble.
bool RowIsCanonical(int bits, const std::byte* packed, int64_t cols) noexcept;

// A whole matrix [rows, cols] of codes as the weight tensor of a PackedLinear.
Tensor PackCodes(int bits, int64_t rows, int64_t cols, const int8_t* codes);

// Row `row` of W as float32: out[c] = scale[row] * q[row][c] (or the scale of c's group), or
// the widened float weight where bits is 16. out: cols floats.
void DequantizeRow(const PackedLinear& linear, int64_t row, int64_t cols, float* out);

}  // namespace flatquant
