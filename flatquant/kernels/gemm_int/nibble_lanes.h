#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Spreads the low four nibbles of x to the low halves of four bytes.
inline uint32_t SpreadNibbles(uint32_t x) {
  x = (x | x << 8) & 0x00ff00ffu;
  return (x | x << 4) & 0x0f0f0f0fu;
}

// A row's columns [8 group, 8 group + 8) as a 32-bit lane: column j in the low
// nibble of byte j, column 4 + j in its high nibble, each as q + 8. row: canonical
// nibbles, row_bytes of them; columns past the end count as q = 0.
inline uint32_t NibbleLane(const uint8_t* row, int64_t row_bytes, int64_t group) {
  uint32_t word = 0;  // canonical order: column j in nibble j (little-endian)
  std::memcpy(&word, row + 4 * group,
              static_cast<size_t>(std::min<int64_t>(4, row_bytes - 4 * group)));
  const uint32_t lane = SpreadNibbles(word & 0xffffu) | SpreadNibbles(word >> 16) << 4;
  return lane ^ 0x88888888u;
}

}  // namespace
}  // namespace flatquant
