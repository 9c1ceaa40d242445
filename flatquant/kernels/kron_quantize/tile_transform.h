#pragma once

#include <cstdint>

#include "flatquant/kernels/amx_tiles.h"
#include "flatquant/kernels/bf16_terms.h"
#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/kron_quantize/ask_ahead.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/kron_quantize/tile_operands.h"

// left^T X right on the tile unit; tile_operands.h has the arithmetic and the layouts.
// Templates over the unit, so that the tests can run them with an emulated one.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// A split operand cut into tiles; tile (i, k) begins at element i * outer + k * inner.
struct TileOperand {
  const uint16_t* high;
  const uint16_t* low;
  int64_t outer;
  int64_t inner;
  int64_t stride;  // bytes from row to row of a tile

  TileOperand From(int64_t i) const {
    return {high + i * outer, low + i * outer, outer, inner, stride};
  }
};

// kM x kN tiles of C; tiles 0..3 are sums, 4 and 5 of a, 6 and 7 of b. Four sums hide
// the latency of a product, which is three times its duration.
template <int kTerms, int kM, int kN, typename Tiles>
inline void MultiplyTiles(Tiles& tiles, int64_t k_tiles, const TileOperand& a, const TileOperand& b,
                          float* c, int64_t c_stride, const AheadShare& ahead) {
  tiles.template Zero<0>();
  if constexpr (kN > 1) tiles.template Zero<1>();
  if constexpr (kM > 1) tiles.template Zero<2>();
  if constexpr (kM > 1 && kN > 1) tiles.template Zero<3>();
  const auto load_a = [&](const uint16_t* from) {
    tiles.template Load<4>(from, a.stride);
    if constexpr (kM > 1) tiles.template Load<5>(from + a.outer, a.stride);
  };
  const auto load_b = [&](const uint16_t* from) {
    tiles.template Load<6>(from, b.stride);
    if constexpr (kN > 1) tiles.template Load<7>(from + b.outer, b.stride);
  };
  const auto multiply = [&] {
    tiles.template DotBf16<0, 4, 6>();
    if constexpr (kN > 1) tiles.template DotBf16<1, 4, 7>();
    if constexpr (kM > 1) tiles.template DotBf16<2, 5, 6>();
    if constexpr (kM > 1 && kN > 1) tiles.template DotBf16<3, 5, 7>();
  };
  for (int64_t k = 0; k < k_tiles; ++k) {
    ahead.Ask();
    // In this order each term is loaded once.
    load_a(a.high + k * a.inner);
    if constexpr (kTerms == 2) {
      load_b(b.low + k * b.inner);
      multiply();
    }
    load_b(b.high + k * b.inner);
    multiply();
    if constexpr (kTerms == 2) {
      load_a(a.low + k * a.inner);
      multiply();
    }
  }
  const int64_t bytes = c_stride * static_cast<int64_t>(sizeof(float));
  tiles.template Store<0>(c, bytes);
  if constexpr (kN > 1) tiles.template Store<1>(c + 16, bytes);
  if constexpr (kM > 1) tiles.template Store<2>(c + 16 * c_stride, bytes);
  if constexpr (kM > 1 && kN > 1) tiles.template Store<3>(c + 16 * c_stride + 16, bytes);
}

// C [m_tiles * 16, n_tiles * 16] = A B. The two columns of tiles of B stay in L1 while
// A passes by: A is one token, which fits beside them, or the smaller left factor.
template <int kTerms, typename Tiles>
inline void MultiplyOperands(Tiles& tiles, int64_t m_tiles, int64_t n_tiles, int64_t k_tiles,
                             const TileOperand& a, const TileOperand& b, float* c, int64_t c_stride,
                             const AheadShare& ahead) {
  for (int64_t n = 0; n < n_tiles; n += 2) {
    const bool two_columns = n + 2 <= n_tiles;
    for (int64_t m = 0; m < m_tiles; m += 2) {
      const bool two_rows = m + 2 <= m_tiles;
      float* corner = c + m * 16 * c_stride + n * 16;
      const TileOperand part_a = a.From(m);
      const TileOperand part_b = b.From(n);
      if (two_rows && two_columns) {
        MultiplyTiles<kTerms, 2, 2>(tiles, k_tiles, part_a, part_b, corner, c_stride, ahead);
      } else if (two_rows) {
        MultiplyTiles<kTerms, 2, 1>(tiles, k_tiles, part_a, part_b, corner, c_stride, ahead);
      } else if (two_columns) {
        MultiplyTiles<kTerms, 1, 2>(tiles, k_tiles, part_a, part_b, corner, c_stride, ahead);
      } else {
        MultiplyTiles<kTerms, 1, 1>(tiles, k_tiles, part_a, part_b, corner, c_stride, ahead);
      }
    }
  }
}

template <int kTerms, typename Tiles>
inline void TransformTerms(const KronTransform& transform, const float* x, int64_t tokens,
                           const KronScratch& scratch, float* y) noexcept {
  Tiles tiles;
  const int64_t rows = transform.left_size;
  const int64_t cols = transform.right_size;
  const int64_t stride = scratch.stride;
  const int64_t n_tiles = stride / 16;
  const bool has_left = transform.left.size() > 0;
  const bool has_right = transform.right.size() > 0;
  const auto blocks = [](int64_t size) { return (size + 31) / 32; };  // of two tiles
  const int64_t right_steps = blocks(tokens * rows) * blocks(stride) * blocks(cols);
  const int64_t left_steps = tokens * blocks(rows) * blocks(stride) * blocks(rows);
  const AheadShare ahead(scratch.ahead,
                         (has_right ? right_steps : 0) + (has_left ? left_steps : 0));
  const float* half = x;
  int64_t half_stride = cols;
  if (has_right) {
    const int64_t k_tiles = (cols + 31) / 32;
    const int64_t words = n_tiles * k_tiles * kTileWords;
    const uint16_t* right = transform.right_tiles.data();
    float* product = has_left ? scratch.half : y;
    SplitRows<kTerms>(x, tokens * rows, cols, scratch.high, scratch.low);
    MultiplyOperands<kTerms>(tiles, (tokens * rows + 15) / 16, n_tiles, k_tiles,
                             {scratch.high, scratch.low, 16 * 32 * k_tiles, 32, 64 * k_tiles},
                             {right, right + words, k_tiles * kTileWords, kTileWords, kTileBytes},
                             product, stride, ahead);
    half = product;
    half_stride = stride;
  }
  if (!has_left) return;
  const int64_t m_tiles = (rows + 15) / 16;
  const int64_t k_tiles = (rows + 31) / 32;
  const int64_t words = m_tiles * k_tiles * kTileWords;
  const uint16_t* left = transform.left_tiles.data();
  for (int64_t t = 0; t < tokens; ++t) {
    SplitSummands<kTerms>(half + t * rows * half_stride, rows,
                          half_stride == stride ? stride : cols, half_stride, scratch.high,
                          scratch.low);
    MultiplyOperands<kTerms>(tiles, m_tiles, n_tiles, k_tiles,
                             {left, left + words, k_tiles * kTileWords, kTileWords, kTileBytes},
                             {scratch.high, scratch.low, 32, 32 * stride, 4 * stride},
                             y + t * rows * stride, stride, ahead);
  }
}

template <typename Tiles>
inline void TransformTiles(const KronTransform& transform, const float* x, int64_t tokens, int bits,
                           const KronScratch& scratch, float* y) noexcept {
  if (bits <= kOneTermBits) {
    TransformTerms<1, Tiles>(transform, x, tokens, scratch, y);
  } else {
    TransformTerms<2, Tiles>(transform, x, tokens, scratch, y);
  }
}

}  // namespace
}  // namespace flatquant
