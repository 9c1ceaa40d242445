#include "flatquant/kernels/limits/full_tiles.h"
#include "flatquant/kernels/limits/register_loops.h"

namespace flatquant {

double AmxInt8Loop(int64_t rounds) {
  AmxTiles tiles;
  FillTiles(tiles, 0x05f9f3fb);
  for (int64_t round = 0; round < rounds; ++round) {
    tiles.DotInt8<0, 4, 6>();
    tiles.DotInt8<1, 4, 7>();
    tiles.DotInt8<2, 5, 6>();
    tiles.DotInt8<3, 5, 7>();
  }
  return TileOperations(rounds, 64);
}

}  // namespace flatquant
