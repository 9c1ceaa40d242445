#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace flatquant {

// bfloat16 is the upper half of a float; conversion to it rounds half to even
// and keeps NaN a NaN.
inline float BF16ToFloat(uint16_t bits) noexcept {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}

inline uint16_t FloatToBF16(float value) noexcept {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

// IEEE 754 binary16, subnormals, infinities and NaN included; rounds half to even.
float F16ToFloat(uint16_t bits) noexcept;
uint16_t FloatToF16(float value) noexcept;

// Whole arrays; n elements, any alignment, no overlap.
void BF16ToFloat(const uint16_t* from, float* to, size_t n) noexcept;
void FloatToBF16(const float* from, uint16_t* to, size_t n) noexcept;
void F16ToFloat(const uint16_t* from, float* to, size_t n) noexcept;
void FloatToF16(const float* from, uint16_t* to, size_t n) noexcept;

}  // namespace flatquant
