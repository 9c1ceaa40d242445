#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>

#include "flatquant/base/half.h"

// The arithmetic of fake quantization on one row of floats; see fake_quant.h for
// the formulas. All three grids are one:
//   y = s (clamp(round(clamp(x, lo, hi) / s) + z, q_min, q_max) - z)
// with the inner clamp for weights alone and z = 0 for symmetric grids.
namespace flatquant::compress {

enum class GridKind { kActivation, kKv, kWeight };

struct Range {
  float max;  // of the row and 0
  float min;
};

// A row's grid, and how its scale depends on the row's range.
struct RowGrid {
  float hi, lo;          // the range after clipping
  float scale, zero;     // s, z
  float q_min, q_max;    // integers as floats
  float ds_dhi, ds_dlo;  // derivatives of s
};

// What flows back into the range of one row.
struct RangeGradient {
  float hi, lo;
};

inline Range FindRange(const float* x, int64_t n) {
  float max = 0, min = 0;
#pragma omp simd reduction(max : max) reduction(min : min)
  for (int64_t j = 0; j < n; ++j) {
    max = x[j] > max ? x[j] : max;
    min = x[j] < min ? x[j] : min;
  }
  return {max, min};
}

// The grid of a row whose range is [lo, hi] after clipping. Never inlined, so that
// the caller's products hi and lo are rounded before they are subtracted here, as
// LibTorch's and the runtime's are, and not fused into a multiply-add.
template <GridKind kKind>
[[gnu::noinline]] RowGrid MakeGrid(float hi, float lo, int bits) {
  RowGrid grid{};
  grid.hi = hi;
  grid.lo = lo;
  float reach;  // s q_max
  if constexpr (kKind == GridKind::kKv) {
    grid.q_max = static_cast<float>((1 << bits) - 1);
    reach = hi - lo;
    grid.ds_dhi = 1 / grid.q_max;
    grid.ds_dlo = -1 / grid.q_max;
  } else {
    grid.q_max = static_cast<float>((1 << (bits - 1)) - 1);
    grid.q_min = -grid.q_max - 1;
    reach = std::max(hi, -lo);
    const float share = hi == -lo ? 0.5f : 1.0f;  // as LibTorch's maximum
    grid.ds_dhi = hi == reach ? share / grid.q_max : 0;
    grid.ds_dlo = -lo == reach ? -share / grid.q_max : 0;
  }
  grid.scale = reach / grid.q_max;
  if (grid.scale == 0) {
    grid.scale = 1;
    grid.ds_dhi = grid.ds_dlo = 0;
  }
  if constexpr (kKind == GridKind::kKv) grid.zero = std::nearbyint(-lo / grid.scale);
  return grid;
}

inline void Store(float value, float* to) { *to = value; }
inline void Store(float value, uint16_t* to) { *to = FloatToBF16(value); }

// y = the row on its grid, as float or bfloat16 (uint16_t).
template <GridKind kKind, typename Out>
void QuantizeRow(const float* x, int64_t n, const RowGrid& grid, Out* y) {
  const RowGrid g = grid;  // a copy that stores to y cannot alias
#pragma omp simd
  for (int64_t j = 0; j < n; ++j) {
    float value = x[j];
    if constexpr (kKind == GridKind::kWeight) {
      value = value > g.hi ? g.hi : value;
      value = value < g.lo ? g.lo : value;
    }
    float q = std::nearbyint(value / g.scale);
    if constexpr (kKind == GridKind::kKv) q += g.zero;
    if constexpr (kKind != GridKind::kWeight) {
      q = q > g.q_max ? g.q_max : q;
      q = q < g.q_min ? g.q_min : q;
    }
    if constexpr (kKind == GridKind::kKv) q -= g.zero;
    Store(g.scale * q, y + j);
  }
}

// dx = the straight-through part of the gradient, given g = dy; returns what
// flows into the clipped range (through the scale, and for weights through the
// clamp), which the caller spreads over clips and extreme elements.
template <GridKind kKind>
RangeGradient QuantizeRowBackward(const float* x, const float* dy, int64_t n, const RowGrid& grid,
                                  float* dx) {
  const RowGrid g = grid;
  float scale_gradient = 0, above = 0, below = 0;
#pragma omp simd reduction(+ : scale_gradient, above, below)
  for (int64_t j = 0; j < n; ++j) {
    const float gradient = dy[j];
    float value = x[j], through = gradient;
    if constexpr (kKind == GridKind::kWeight) {
      const float over = value > g.hi ? gradient : 0.0f, under = value < g.lo ? gradient : 0.0f;
      above += over;
      below += under;
      through -= over;
      through -= under;
      value = value > g.hi ? g.hi : value;
      value = value < g.lo ? g.lo : value;
      const float u = value / g.scale;
      scale_gradient += gradient * (std::nearbyint(u) - u);
    } else {
      const float u = value / g.scale;
      const float q = std::nearbyint(u) + g.zero;
      float clamped = q > g.q_max ? g.q_max : q;
      clamped = clamped < g.q_min ? g.q_min : clamped;
      const float inside = q == clamped ? u : 0.0f;
      through = q == clamped ? gradient : 0.0f;
      scale_gradient += gradient * (clamped - g.zero - inside);
    }
    dx[j] = through;
  }
  return {scale_gradient * g.ds_dhi + above, scale_gradient * g.ds_dlo + below};
}

// Index of the first element equal to value, which the row contains.
inline int64_t FindFirst(const float* x, int64_t n, float value) {
  constexpr int64_t kBlock = 64;
  int64_t j = 0;
  for (; j + kBlock <= n; j += kBlock) {
    int found = 0;
#pragma omp simd reduction(| : found)
    for (int64_t i = 0; i < kBlock; ++i) found |= x[j + i] == value;
    if (found) break;
  }
  while (j < n - 1 && x[j] != value) ++j;
  return j;
}

}  // namespace flatquant::compress
