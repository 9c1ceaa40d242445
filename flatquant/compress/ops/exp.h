#pragma once

#include <bit>
#include <cstdint>

namespace flatquant::compress {

// e^x for the inner loops of softmax and SiLU: written so that the compiler
// vectorises it with the loop around it, which it cannot do with std::exp.
// Relative error below 3e-7 for |x| < 87; outside, x is clamped there, so that
// results are neither 0, subnormal nor infinite.
//
// e^x = 2^i e^f with i = round(x / ln 2) and |f| <= ln(2)/2; e^f by its Taylor
// polynomial of degree 7, whose remainder is below 1e-8 there.
inline float FastExp(float x) {
  x = x < -87.0f ? -87.0f : x;
  x = x > 88.0f ? 88.0f : x;
  // Adding 1.5 * 2^23 leaves the nearest integer in the low mantissa bits.
  constexpr float kRound = 12582912.0f;
  const float shifted = x * 1.44269504f + kRound;
  const float i = shifted - kRound;
  // ln 2 in two parts, the first exact in few bits, so that i * high is exact.
  float f = x - i * 0.693359375f;
  f = f - i * -2.12194440e-4f;
  float p = 1.0f / 5040;
  p = p * f + 1.0f / 720;
  p = p * f + 1.0f / 120;
  p = p * f + 1.0f / 24;
  p = p * f + 1.0f / 6;
  p = p * f + 0.5f;
  p = p * f + 1.0f;
  p = p * f + 1.0f;
  // Adds i to the exponent.
  const int32_t exponent = std::bit_cast<int32_t>(shifted) << 23;
  return std::bit_cast<float>(std::bit_cast<int32_t>(p) + exponent);
}

}  // namespace flatquant::compress
