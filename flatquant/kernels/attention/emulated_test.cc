// The kernel for tiles of bytes on an emulated tile unit, for test.cc: a file of its own,
// because it is compiled for AVX-512 VNNI (kernels/CMakeLists.txt), which test.cc has to
// ask for first.

// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/attention/tile_multiplier.h"

namespace flatquant {

extern const AttentionKernel kAttentionX86Avx512Vnni;

namespace {

void ManyRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  if (!IsInteger(block)) return kAttentionX86Avx512Vnni.many_rows(block, sums);
  RunInteger<TileMultiplier<EmulatedTiles>>(block, sums);
}

void FewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  kAttentionX86Avx512Vnni.few_rows(block, sums);
}

}  // namespace

extern const AttentionKernel kAttentionEmulatedByteTiles;
const AttentionKernel kAttentionEmulatedByteTiles = {
    IntegerTileTokenSlice, ManyRows, FewRows, 0, kFixedRounding<1>, kFixedRounding<2>};

}  // namespace flatquant
