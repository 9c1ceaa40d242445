#pragma once

#include <bit>
#include <cmath>
#include <cstdint>

#include "flatquant/kernels/float_lanes.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// exp(x) without branches or calls, so that loops over it vectorise. Relative
// error below 2^-22 for x in [-87, 88]; exactly 0 below -87; infinite above 88.7.
//
// x = n ln 2 + r with |r| <= ln(2) / 2; exp(r) by its Taylor polynomial of degree
// 7, whose remainder 0.3466^8 / 8! = 5.2e-9 lies below half of float's epsilon.
// ln 2 is split in two so that n * high is exact (high has 15 bits, n has 8).
inline float VectorExp(float x) {
  constexpr float kLog2E = 1.44269504f;
  constexpr float kLn2High = 0.693145752f;   // 0x3f317200
  constexpr float kLn2Low = 1.42860682e-6f;  // ln 2 - kLn2High
  const float clamped = x > 89.0f ? 89.0f : (x < -87.0f ? -87.0f : x);
  const float n = std::nearbyint(clamped * kLog2E);
  const float r = (clamped - n * kLn2High) - n * kLn2Low;
  float p = 1.0f / 5040.0f;
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  // 2^n in two factors: n reaches 128, which one exponent field cannot hold.
  const int32_t power = static_cast<int32_t>(n);
  const int32_t half = power >> 1;
  const float scale0 = std::bit_cast<float>((half + 127) << 23);
  const float scale1 = std::bit_cast<float>((power - half + 127) << 23);
  const float y = p * scale0 * scale1;
  return x < -87.0f ? 0.0f : y;
}

// The same for a register of floats that all lie in [-87, 88].
inline Lanes ExpLanesWithin(Lanes x) {
  const Lanes n = RoundLanes(x * SetLanes(1.44269504f));
  const Lanes r = MulSub(n, SetLanes(1.42860682e-6f), MulSub(n, SetLanes(0.693145752f), x));
  Lanes p = SetLanes(1.0f / 5040.0f);
  p = MulAdd(p, r, SetLanes(1.0f / 720.0f));
  p = MulAdd(p, r, SetLanes(1.0f / 120.0f));
  p = MulAdd(p, r, SetLanes(1.0f / 24.0f));
  p = MulAdd(p, r, SetLanes(1.0f / 6.0f));
  p = MulAdd(p, r, SetLanes(0.5f));
  p = MulAdd(p, r, SetLanes(1.0f));
  p = MulAdd(p, r, SetLanes(1.0f));
  return TimesPowerOfTwo(p, n);
}

// Softmax's, for x <= 0: 0 below -60. That is nothing beside the row's largest, exp(0), and what
// is left stays a normal number when a value's scale multiplies it: subnormal ones take some CPUs
// a hundred cycles each (attention over scattered scores a third to a half of its time).
inline Lanes SoftmaxExpLanes(Lanes x) {
  return ZeroBelow(ExpLanesWithin(MaxLanes(x, SetLanes(-60.0f))), x, -60.0f);
}

}  // namespace
}  // namespace flatquant
