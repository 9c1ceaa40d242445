#pragma once

#include <algorithm>
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
                          float* c, int64_t c_stride, KronAhead& ahead) {
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
    AskAhead(ahead);
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
                             KronAhead& ahead) {
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

// Calls split(i), which writes an operand, and multiply(i), which has the unit multiply it,
// for each step. An operand is split before the products of the one before it: the unit is
// busy meanwhile, and what was written is in L1 when it is loaded as tiles.
template <typename Split, typename Multiply>
inline void Alternate(int64_t steps, const Split& split, const Multiply& multiply) {
  if (steps > 0) split(0);
  for (int64_t i = 0; i < steps; ++i) {
    if (i + 1 < steps) split(i + 1);
    multiply(i);
  }
}

// One of two operands that take turns in a scratch's memory; `size` elements each.
struct SplitMemory {
  uint16_t* high;
  uint16_t* low;

  SplitMemory(const KronScratch& scratch, int64_t i, int64_t size)
      : high(scratch.high + i % 2 * size), low(scratch.low + i % 2 * size) {}
};

// product [rows rounded up to 16, stride] = x [rows, R] right, 32 rows in a step.
template <int kTerms, typename Tiles>
inline void MultiplyRight(Tiles& tiles, const KronTransform& transform, const float* x,
                          int64_t rows, const KronScratch& scratch, float* product) {
  const int64_t cols = transform.right_size;
  const int64_t stride = scratch.stride;
  const int64_t k_tiles = (cols + 31) / 32;
  const int64_t words = stride / 16 * k_tiles * kTileWords;
  const uint16_t* right = transform.right_tiles.data();
  const TileOperand b = {right, right + words, k_tiles * kTileWords, kTileWords, kTileBytes};
  const auto count = [&](int64_t i) { return std::min<int64_t>(32, rows - 32 * i); };
  const auto memory = [&](int64_t i) { return SplitMemory(scratch, i, 32 * 32 * k_tiles); };
  Alternate((rows + 31) / 32,
            [&](int64_t i) {
              SplitRows<kTerms>(x + 32 * i * cols, count(i), cols, memory(i).high, memory(i).low);
            },
            [&](int64_t i) {
              MultiplyOperands<kTerms>(
                  tiles, (count(i) + 15) / 16, stride / 16, k_tiles,
                  {memory(i).high, memory(i).low, 16 * 32 * k_tiles, 32, 64 * k_tiles}, b,
                  product + 32 * i * stride, stride, *scratch.ahead);
            });
}

// y [tokens, L, stride] = left^T half, 32 columns of a token in a step. half has rows
// half_stride apart, of which half_cols elements count.
template <int kTerms, typename Tiles>
inline void MultiplyLeft(Tiles& tiles, const KronTransform& transform, const float* half,
                         int64_t half_stride, int64_t half_cols, int64_t tokens,
                         const KronScratch& scratch, float* y) {
  const int64_t rows = transform.left_size;
  const int64_t stride = scratch.stride;
  const int64_t m_tiles = (rows + 15) / 16;
  const int64_t k_tiles = (rows + 31) / 32;
  const int64_t words = m_tiles * k_tiles * kTileWords;
  const uint16_t* left = transform.left_tiles.data();
  const TileOperand a = {left, left + words, k_tiles * kTileWords, kTileWords, kTileBytes};
  const int64_t steps = (stride + 31) / 32;  // of a token
  const auto memory = [&](int64_t i) { return SplitMemory(scratch, i, 32 * 32 * k_tiles); };
  Alternate(
      tokens * steps,
      [&](int64_t i) {
        const int64_t column = i % steps * 32;
        SplitSummands<kTerms>(half + i / steps * rows * half_stride + column, rows,
                              std::min<int64_t>(32, half_cols - column), half_stride,
                              memory(i).high, memory(i).low);
      },
      [&](int64_t i) {
        const int64_t column = i % steps * 32;
        const int64_t width = std::min<int64_t>(32, stride - column);
        MultiplyOperands<kTerms>(tiles, m_tiles, width / 16, k_tiles, a,
                                 {memory(i).high, memory(i).low, 32, 32 * width, 4 * width},
                                 y + i / steps * rows * stride + column, stride, *scratch.ahead);
      });
}

template <int kTerms, typename Tiles>
inline void TransformTerms(const KronTransform& transform, const float* x, int64_t tokens, int bits,
                           const KronScratch& scratch, float* y) noexcept {
  Tiles tiles;
  const int64_t rows = transform.left_size;
  const int64_t cols = transform.right_size;
  const int64_t stride = scratch.stride;
  const bool has_left = transform.left.size() > 0;
  const bool has_right = transform.right.size() > 0;
  const auto blocks = [](int64_t size) { return (size + 31) / 32; };  // of two tiles
  const int64_t right_steps = blocks(tokens * rows) * blocks(stride) * blocks(cols);
  const int64_t left_steps = tokens * blocks(rows) * blocks(stride) * blocks(rows);
  ShareWithTransform(*scratch.ahead, bits,
                     (has_right ? right_steps : 0) + (has_left ? left_steps : 0));
  if (!has_right) {
    MultiplyLeft<kTerms>(tiles, transform, x, cols, cols, tokens, scratch, y);
    return;
  }
  float* product = has_left ? scratch.half : y;
  MultiplyRight<kTerms>(tiles, transform, x, tokens * rows, scratch, product);
  if (has_left) {
    MultiplyLeft<kTerms>(tiles, transform, product, stride, stride, tokens, scratch, y);
  }
}

template <typename Tiles>
inline void TransformTiles(const KronTransform& transform, const float* x, int64_t tokens, int bits,
                           const KronScratch& scratch, float* y) noexcept {
  if (bits <= kOneTermBits) {
    TransformTerms<1, Tiles>(transform, x, tokens, bits, scratch, y);
  } else {
    TransformTerms<2, Tiles>(transform, x, tokens, bits, scratch, y);
  }
}

}  // namespace
}  // namespace flatquant
