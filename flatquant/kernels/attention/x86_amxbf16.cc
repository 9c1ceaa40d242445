// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/attention/fixed_point.h"
#include "flatquant/kernels/attention/tile_attention.h"

namespace flatquant {

extern const AttentionKernel kAttentionX86Avx512Vnni;

namespace {

// Few rows would leave most of a tile empty.
void FewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  kAttentionX86Avx512Vnni.few_rows(block, sums);
}

}  // namespace

extern const AttentionKernel kAttentionX86AmxBf16;
const AttentionKernel kAttentionX86AmxBf16 = {TileTokenSlice,    RunTileRows<AmxTiles>,
                                              FewRows,           kTwoTermsRounding,
                                              kFixedRounding<1>, kFixedRounding<2>};

}  // namespace flatquant
