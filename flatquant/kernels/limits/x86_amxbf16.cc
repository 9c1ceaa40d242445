#include "flatquant/kernels/limits/full_tiles.h"
#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {

double AmxBf16Loop(int64_t rounds) {
  AmxTiles tiles;
  FillTiles(tiles, 0x3f41beaa);  // 0.75 and -0.33
  for (int64_t round = 0; round < rounds; ++round) {
    tiles.DotBf16<0, 4, 6>();
    tiles.DotBf16<1, 4, 7>();
    tiles.DotBf16<2, 5, 6>();
    tiles.DotBf16<3, 5, 7>();
  }
  return TileOperations(rounds, 32);
}

}  // namespace flatquant
