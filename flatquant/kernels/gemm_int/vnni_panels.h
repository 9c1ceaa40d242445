#pragma once

#include <cstddef>
#include <cstdint>

#include "flatquant/kernels/gemm_int/gemm_int.h"

namespace flatquant {

// The layout that the VNNI and the AMX kernel share, so that weights packed for
// one can be multiplied by the other (few tokens: VNNI; many: AMX).
//
// Panels of 32 rows. A panel runs over groups of 8 columns; a group of a nibble
// panel is two 64-byte vectors (rows 0..15 and 16..31), in which 32-bit lane i
// holds row i's columns 0..3 in its low nibbles and 4..7 in its high ones, each as
// q + 8. A group of a byte panel is four vectors: columns 0..3 of both row halves,
// then columns 4..7, each as q + 128. A vector of four columns is what VPDPBUSD
// takes, and one of the 16 rows of an AMX tile. Columns are padded to a multiple of
// 64, a tile's depth; what stands there is undefined, since it meets activations of
// zero.
inline constexpr int64_t kVnniPanelRows = 32;
inline constexpr int64_t kVnniGroupCols = 8;
inline constexpr int64_t kVnniStepCols = 64;

constexpr bool VnniIsNibble(int bits) { return bits <= 4; }
// What is added to each weight.
constexpr int32_t VnniOffset(int bits) { return VnniIsNibble(bits) ? 8 : 128; }
constexpr int64_t VnniSteps(int64_t cols) { return (cols + kVnniStepCols - 1) / kVnniStepCols; }
constexpr int64_t VnniStepBytes(int bits) {
  return kVnniPanelRows * kVnniStepCols / (VnniIsNibble(bits) ? 2 : 1);
}
constexpr int64_t VnniPanelBytes(int bits, int64_t cols) {
  return VnniSteps(cols) * VnniStepBytes(bits);
}

// GemmIntKernel's packed_bytes and pack.
size_t VnniPackedBytes(int bits, int64_t rows, int64_t cols) noexcept;
void VnniPack(const GemmIntSource& source, int64_t row_begin, int64_t row_end,
              uint8_t* packed) noexcept;

}  // namespace flatquant
