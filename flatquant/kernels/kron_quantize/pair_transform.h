#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "flatquant/kernels/bf16_terms.h"
#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/kron_quantize/ask_ahead.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/kron_quantize/tile_operands.h"
#include "flatquant/kernels/kron_quantize/transform_lanes.h"
#include "flatquant/kernels/unroll.h"

// left^T X right with VDPBF16PS, which adds two products of bfloat16 to each float of a
// register: half the instructions of float multiply-adds, where a grid of few bits
// follows (kOneTermBits). Two terms would take three products, more than floats do.
// Operands are the tile unit's (tile_operands.h).
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Numbers of a matrix in pairs, cut into blocks of 16 pairs, in elements: of a first
// operand a row is to be given, of a second one a vector of 16 columns.
struct PairOperand {
  const uint16_t* data;
  int64_t outer;  // from row to row, or from vector to vector
  int64_t block;  // from block to block
  int64_t pair;   // from pair to pair
};

// Rows and vectors of a tile of sums: 24 of the 32 registers, with the operands 28. The
// unit takes a product a cycle and has its sum six cycles later.
inline constexpr int kPairRows = 8;
inline constexpr int kPairVectors = 3;

template <int kRows, int kVectors>
inline void MultiplyPairTile(int64_t blocks, const PairOperand& a, const PairOperand& b, float* c,
                             int64_t c_stride) {
  __m512 sum[kRows][kVectors];
  Unroll<kRows>(
      [&](auto i) { Unroll<kVectors>([&](auto j) { sum[i][j] = _mm512_setzero_ps(); }); });
  for (int64_t k = 0; k < blocks; ++k) {
    const uint16_t* a_block = a.data + k * a.block;
    const uint16_t* b_block = b.data + k * b.block;
    for (int64_t p = 0; p < 16; ++p, a_block += a.pair, b_block += b.pair) {
      __m512i vector[kVectors];
      Unroll<kVectors>([&](auto j) { vector[j] = _mm512_loadu_si512(b_block + j * b.outer); });
      Unroll<kRows>([&](auto i) {
        int32_t pair;
        std::memcpy(&pair, a_block + i * a.outer, sizeof(pair));
        const auto element = (__m512bh)_mm512_set1_epi32(pair);
        Unroll<kVectors>(
            [&](auto j) { sum[i][j] = _mm512_dpbf16_ps(sum[i][j], element, (__m512bh)vector[j]); });
      });
    }
  }
  Unroll<kRows>([&](auto i) {
    Unroll<kVectors>([&](auto j) { StoreLanes(c + i * c_stride + j * 16, sum[i][j]); });
  });
}

// MultiplyPairTile with `rows` <= kRows rows.
template <int kRows, int kVectors>
inline void MultiplyPairRows(int64_t rows, int64_t blocks, const PairOperand& a,
                             const PairOperand& b, float* c, int64_t c_stride) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      MultiplyPairTile<kRows, kVectors>(blocks, a, b, c, c_stride);
    } else {
      MultiplyPairRows<kRows - 1, kVectors>(rows, blocks, a, b, c, c_stride);
    }
  }
}

constexpr int64_t PairPanels(int64_t vectors) {
  return (vectors + kPairVectors - 1) / kPairVectors;
}

// C [rows, 16 vectors] = A B over 32 blocks of summands. A's rows are in groups of 16,
// a_group elements apart. B's vectors stay in L1 while A passes by.
inline void MultiplyPairs(int64_t rows, int64_t vectors, int64_t blocks, const PairOperand& a,
                          int64_t a_group, PairOperand b, float* c, int64_t c_stride,
                          KronAhead& ahead) {
  for (int64_t panels = PairPanels(vectors); panels > 0; --panels) {
    const int64_t width = (vectors + panels - 1) / panels;
    for (int64_t row = 0; row < rows; row += kPairRows) {
      const PairOperand part = {a.data + row / 16 * a_group + row % 16 * a.outer, a.outer, a.block,
                                a.pair};
      const int64_t height = std::min<int64_t>(kPairRows, rows - row);
      AskAhead(ahead);
      float* corner = c + row * c_stride;
      if (width == 3) MultiplyPairRows<kPairRows, 3>(height, blocks, part, b, corner, c_stride);
      if (width == 2) MultiplyPairRows<kPairRows, 2>(height, blocks, part, b, corner, c_stride);
      if (width == 1) MultiplyPairRows<kPairRows, 1>(height, blocks, part, b, corner, c_stride);
    }
    vectors -= width;
    b.data += width * b.outer;
    c += width * 16;
  }
}

inline void TransformPairs(const KronTransform& transform, const float* x, int64_t tokens, int bits,
                           const KronScratch& scratch, float* y) noexcept {
  if (bits > kOneTermBits) return TransformLanes(transform, x, tokens, bits, scratch, y);
  const int64_t rows = transform.left_size;
  const int64_t cols = transform.right_size;
  const int64_t stride = scratch.stride;
  const bool has_left = transform.left.size() > 0;
  const bool has_right = transform.right.size() > 0;
  const int64_t tiles = (tokens * rows + kPairRows - 1) / kPairRows * PairPanels(stride / 16);
  KronAhead& ahead = *scratch.ahead;
  ShareWithTransform(ahead, bits, (has_right ? tiles : 0) + (has_left ? tiles : 0));
  const float* half = x;
  int64_t half_stride = cols;
  if (has_right) {
    const int64_t blocks = (cols + 31) / 32;
    float* product = has_left ? scratch.half : y;
    SplitRows<1>(x, tokens * rows, cols, scratch.high, scratch.high);
    MultiplyPairs(tokens * rows, stride / 16, blocks, {scratch.high, 32 * blocks, 32, 2},
                  16 * 32 * blocks,
                  {transform.right_tiles.data(), blocks * kTileWords, kTileWords, 32}, product,
                  stride, ahead);
    half = product;
    half_stride = stride;
  }
  if (!has_left) return;
  const int64_t blocks = (rows + 31) / 32;
  for (int64_t t = 0; t < tokens; ++t) {
    SplitSummands<1>(half + t * rows * half_stride, rows, half_stride == stride ? stride : cols,
                     half_stride, scratch.high, scratch.high);
    MultiplyPairs(rows, stride / 16, blocks, {transform.left_tiles.data(), 32, kTileWords, 2},
                  blocks * kTileWords, {scratch.high, 32, 32 * stride, 2 * stride},
                  y + t * rows * stride, stride, ahead);
  }
}

}  // namespace
}  // namespace flatquant
