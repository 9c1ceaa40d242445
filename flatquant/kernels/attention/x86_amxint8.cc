// Integer caches in integers, on tiles of bytes; others as without.

// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/base/cpu_features.h"
#include "flatquant/kernels/attention/tile_multiplier.h"

namespace flatquant {

extern const AttentionKernel kAttentionX86Avx512Vnni;
extern const AttentionKernel kAttentionX86AmxBf16;

namespace {

const AttentionKernel& Other() noexcept {
  return GetCpuFeatures().amxbf16 ? kAttentionX86AmxBf16 : kAttentionX86Avx512Vnni;
}

void ManyRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  if (!IsInteger(block)) return Other().many_rows(block, sums);
  RunInteger<TileMultiplier<AmxTiles>>(block, sums);
}

// Few rows would leave most of a tile empty.
void FewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  kAttentionX86Avx512Vnni.few_rows(block, sums);
}

}  // namespace

extern const AttentionKernel kAttentionX86AmxInt8;
// Caches of bfloat16 meet queries and weights of two terms, which leave 2^-16.
const AttentionKernel kAttentionX86AmxInt8 = {
    IntegerTileTokenSlice, ManyRows, FewRows, 0x1p-16, kFixedRounding<1>, kFixedRounding<2>};

}  // namespace flatquant
