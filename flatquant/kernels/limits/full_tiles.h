#pragma once

#include <cstdint>

#include "flatquant/kernels/amx_tiles.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Fills tiles 4..7, the operands of a loop, with `pattern`, and clears 0..3, its sums.
inline void FillTiles(AmxTiles& tiles, uint32_t pattern) {
  alignas(64) uint32_t data[kTileSize / 4];
  for (uint32_t& word : data) word = pattern;
  tiles.Zero<0>();
  tiles.Zero<1>();
  tiles.Zero<2>();
  tiles.Zero<3>();
  tiles.Load<4>(data, kTileBytes);
  tiles.Load<5>(data, kTileBytes);
  tiles.Load<6>(data, kTileBytes);
  tiles.Load<7>(data, kTileBytes);
}

// Four products per round of 16 x 16 sums of `depth` multiply-adds.
inline double TileOperations(int64_t rounds, double depth) {
  return 2.0 * 4 * 16 * 16 * depth * static_cast<double>(rounds);
}

}  // namespace
}  // namespace flatquant
