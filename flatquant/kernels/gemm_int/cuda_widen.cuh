#pragma once

#include <cstdint>

namespace flatquant::cuda {

// A word of nibbles (q0 low, q1 high in each byte) as two words of int8 holding 16 q:
// a nibble in the upper half of its byte needs no sign extension, so this is three
// instructions for eight weights. The factor is taken back by kNibbleScale.
inline constexpr float kNibbleScale = 1.0f / 16;

__device__ inline void WidenNibbles(uint32_t word, uint32_t& low, uint32_t& high) {
  low = (word << 4) & 0xf0f0f0f0u;
  high = word & 0xf0f0f0f0u;
}

}  // namespace flatquant::cuda
