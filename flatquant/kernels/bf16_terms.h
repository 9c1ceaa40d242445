#pragma once

#include <cstdint>

#include "flatquant/kernels/float_lanes.h"

// Floats as one or two bfloat16 terms, laid out as a tile unit's operands
// (amx_tiles.h). Pairs are summands 16 apart, in both operands alike.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

typedef uint32_t LaneBits __attribute__((vector_size(kLanes * 4)));

// Pairs (a, b) per lane, a in the lower half, as kTerms terms. Of two, the high one is
// cut off, not rounded: it can then not overflow, and the low one is exact before it
// is rounded.
template <int kTerms>
inline void StorePairs(Lanes a, Lanes b, uint16_t* high, uint16_t* low) {
  const LaneBits upper_half = (LaneBits{} + 0xffff0000u);
  const LaneBits round = (LaneBits{} + 0x8000u);
  if constexpr (kTerms == 1) {
    const LaneBits a_bits = reinterpret_cast<LaneBits>(a) + round;
    const LaneBits b_bits = reinterpret_cast<LaneBits>(b) + round;
    StoreLanes(reinterpret_cast<float*>(high),
               reinterpret_cast<Lanes>(a_bits >> 16 | (b_bits & upper_half)));
  } else {
    const LaneBits a_high = reinterpret_cast<LaneBits>(a) & upper_half;
    const LaneBits b_high = reinterpret_cast<LaneBits>(b) & upper_half;
    const LaneBits a_low = reinterpret_cast<LaneBits>(a - reinterpret_cast<Lanes>(a_high)) + round;
    const LaneBits b_low = reinterpret_cast<LaneBits>(b - reinterpret_cast<Lanes>(b_high)) + round;
    StoreLanes(reinterpret_cast<float*>(high), reinterpret_cast<Lanes>(a_high >> 16 | b_high));
    StoreLanes(reinterpret_cast<float*>(low),
               reinterpret_cast<Lanes>(a_low >> 16 | (b_low & upper_half)));
  }
}

// Rows of floats to a first operand: [rows, cols rounded up to 32], pairs along rows.
template <int kTerms>
inline void SplitRows(const float* x, int64_t rows, int64_t cols, uint16_t* high, uint16_t* low) {
  const int64_t full = cols / 32 * 32;
  const int64_t rest = cols - full;
  for (int64_t i = 0; i < rows; ++i, x += cols) {
    for (int64_t c = 0; c < full; c += 32, high += 32, low += 32) {
      for (int64_t j = 0; j < 16; j += kLanes) {
        StorePairs<kTerms>(LoadLanes(x + c + j), LoadLanes(x + c + 16 + j), high + 2 * j,
                           low + 2 * j);
      }
    }
    if (rest == 0) continue;
    const auto load = [&](int64_t j) {  // lanes from j of the rest, zeros beyond it
      if (j + kLanes <= rest) return LoadLanes(x + full + j);
      return j < rest ? LoadFirst(x + full + j, rest - j) : SetLanes(0);
    };
    for (int64_t j = 0; j < 16; j += kLanes) {
      StorePairs<kTerms>(load(j), load(j + 16), high + 2 * j, low + 2 * j);
    }
    high += 32;
    low += 32;
  }
}

// A token's rows to a second operand, whose summands they are: [rows rounded up to 32
// / 2][cols rounded up to 16] pairs. cols at the end of x's rows are read as zeros.
template <int kTerms>
inline void SplitSummands(const float* x, int64_t rows, int64_t cols, int64_t x_stride,
                          uint16_t* high, uint16_t* low) {
  for (int64_t block = 0; block < rows; block += 32) {
    for (int64_t p = 0; p < 16; ++p) {
      const float* a = x + (block + p) * x_stride;
      const bool has_a = block + p < rows;
      const bool has_b = block + p + 16 < rows;
      const auto load = [&](const float* row, int64_t c) {
        return c + kLanes <= cols ? LoadLanes(row + c)
                                  : (c < cols ? LoadFirst(row + c, cols - c) : SetLanes(0));
      };
      for (int64_t c = 0; c < (cols + 15) / 16 * 16;
           c += kLanes, high += 2 * kLanes, low += 2 * kLanes) {
        StorePairs<kTerms>(has_a ? load(a, c) : SetLanes(0),
                           has_b ? load(a + 16 * x_stride, c) : SetLanes(0), high, low);
      }
    }
  }
}

}  // namespace
}  // namespace flatquant
