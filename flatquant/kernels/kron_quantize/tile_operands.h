#pragma once

#include <cstdint>

#include "flatquant/kernels/kron_quantize/kron_quantize.h"

// Operands of the tile unit (amx_tiles.h) for left^T X right in bfloat16.
//
// A float is split into two bfloat16 terms, x = high + low + at most 2^-15 |x|, and
// a product into high high + low high + high low, in float sums. Where the result is
// rounded to a grid of few bits, high is the nearest bfloat16 and the only term: its
// error, at most 2^-8 |x|, disappears in the grid's steps (see kOneTermBits). Summands come in
// pairs; a block of 32 pairs p with p + 16 (0 <= p < 16), so that two registers of
// floats become one of pairs without crossing lanes. Everything is padded with zeros
// to 16 rows and columns and to 32 summands.
//
// right_tiles: the second operand, tiles [columns / 16][summands / 32] of 16 pairs x
// 16 columns; left_tiles: the first operand left^T, tiles [rows / 16][summands / 32]
// of 16 rows x 16 pairs. All high tiles, then all low ones.
namespace flatquant {

inline constexpr int64_t kTileWords = 512;  // bfloat16 of a tile

// The widest grid for which one term is enough. A transform rounds four times (X, X
// right and both matrices), each time by 2^-9.3 of a value in the mean, together by
// 2^-8.3 of a typical result. Rounding to 4 bits deviates by 2^-3.6 of it or more: a
// step is 1/7 of the largest value, which is at least twice a typical one, and the
// deviation 12^-1/2 of a step. So one term adds a thousandth to the error's power, and
// as much to a network's divergence (docs/evaluation.md, "What a last bit does to it").
inline constexpr int kOneTermBits = 4;

// Fills the transform's tiles from its floats.
void PackTileOperands(KronTransform& transform);

// Elements of scratch.high and of scratch.low for that many tokens.
int64_t TileOperandElements(const KronTransform& transform, int64_t tokens);

}  // namespace flatquant
