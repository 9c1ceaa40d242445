#pragma once

#include <cstdint>

#include "flatquant/kernels/kron_quantize/kron_quantize.h"

// Operands of the tile unit (amx_tiles.h) for left^T X right in bfloat16.
//
// A float is split into two bfloat16 terms, x = high + low + at most 2^-16 |x|, and
// a product into high high + low high + high low, in float sums. Summands come in
// pairs; a block of 32 pairs p with p + 16 (0 <= p < 16), so that two registers of
// floats become one of pairs without crossing lanes. Everything is padded with zeros
// to 16 rows and columns and to 32 summands.
//
// right_tiles: the second operand, tiles [columns / 16][summands / 32] of 16 pairs x
// 16 columns; left_tiles: the first operand left^T, tiles [rows / 16][summands / 32]
// of 16 rows x 16 pairs. All high tiles, then all low ones.
namespace flatquant {

inline constexpr int64_t kTileWords = 512;  // bfloat16 of a tile

// Fills the transform's tiles from its floats.
void PackTileOperands(KronTransform& transform);

// Elements of scratch.high and of scratch.low for that many tokens.
int64_t TileOperandElements(const KronTransform& transform, int64_t tokens);

}  // namespace flatquant
