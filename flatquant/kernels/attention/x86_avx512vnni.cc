// Integer caches in integers, with VPDPBUSD; float ones in float.

// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/byte_products.h"
#include "flatquant/kernels/attention/float_matrix.h"
#include "flatquant/kernels/attention/float_rows.h"
#include "flatquant/kernels/attention/integer_rows.h"
#include "flatquant/kernels/attention/packed_nibbles.h"
#include "flatquant/kernels/unroll.h"

namespace flatquant {
namespace {

struct VnniMultiplier {
  // A group: one token's heads of many models, for which K and V are staged once.
  static constexpr int kRows = 8;
  // A tile: four rows, and as many panels as make 16 sums; of 32 registers, with the
  // operands, 21. The unit takes a product a cycle and has its sum four cycles later.
  static constexpr int kTileRows = 4;
  template <int kDigits>
  static constexpr int kPanels = 4 / kDigits;
  template <int kDigits>
  static constexpr int64_t Lines(int64_t depth, int64_t panels) {
    return depth / 4 * (panels / kPanels<kDigits>);
  }

  template <bool kIsSigned, int kDigits>
  void Multiply(int64_t rows, int64_t depth, const uint8_t* digits, int64_t stride,
                const uint8_t* codes, int64_t panels, int64_t panel_bytes, int32_t* products,
                int64_t product_stride, const uint8_t* ahead, int64_t step) {
    for (int64_t tiles = (rows + kTileRows - 1) / kTileRows; tiles > 0; --tiles) {
      const int64_t height = (rows + tiles - 1) / tiles;
      const auto run = height == 4   ? Tile<kIsSigned, kDigits, 4>
                       : height == 3 ? Tile<kIsSigned, kDigits, 3>
                       : height == 2 ? Tile<kIsSigned, kDigits, 2>
                                     : Tile<kIsSigned, kDigits, 1>;
      for (int64_t p = 0; p < panels; p += kPanels<kDigits>) {
        run(depth, digits, stride, codes + p * panel_bytes, panel_bytes, products + p * 16,
            product_stride, ahead, step);
        ahead += depth / 4 * step;
      }
      step = 0;  // asked for
      rows -= height;
      digits += height * kDigits * stride;
      products += height * kDigits * product_stride;
    }
  }

 private:
  template <bool kIsSigned, int kDigits, int kSome>
  static void Tile(int64_t depth, const uint8_t* digits, int64_t stride, const uint8_t* codes,
                   int64_t panel_bytes, int32_t* products, int64_t product_stride,
                   const uint8_t* ahead, int64_t step) {
    constexpr int kDigitRows = kSome * kDigits;
    constexpr int kWide = kPanels<kDigits>;
    __m512i sum[kDigitRows][kWide];
    Unroll<kDigitRows>(
        [&](auto r) { Unroll<kWide>([&](auto p) { sum[r][p] = _mm512_setzero_si512(); }); });
    int64_t d = 0;
    do {
      __m512i panel[kWide];
      Unroll<kWide>(
          [&](auto p) { panel[p] = _mm512_load_si512(codes + p * panel_bytes + d * 16); });
      Unroll<kDigitRows>([&](auto r) {
        int32_t four;
        std::memcpy(&four, digits + r * stride + d, sizeof(four));
        const __m512i broadcast = _mm512_set1_epi32(four);
        Unroll<kWide>(
            [&](auto p) { sum[r][p] = AddProducts<kIsSigned>(sum[r][p], broadcast, panel[p]); });
      });
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      ahead += step;
      d += 4;
    } while (d < depth);
    Unroll<kDigitRows>([&](auto r) {
      Unroll<kWide>(
          [&](auto p) { _mm512_storeu_si512(products + r * product_stride + p * 16, sum[r][p]); });
    });
  }
};

void ManyRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  if (!IsInteger(block)) return RunManyRows(block, sums);
  RunInteger<VnniMultiplier>(block, sums);
}

// Panels pay when many rows share them: nibbles as they lie take 0.6 of their time for 1 to
// 4 rows, 0.85 for 8, as much for 16.
void FewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  if (!IsInteger(block)) return RunFewRows(block, sums);
  if (PackedNibbles::Takes(block.args->k) && PackedNibbles::Takes(block.args->v)) {
    IntegerAttention<PackedNibbles>(block, sums).Run();
    return;
  }
  RunInteger<VnniMultiplier>(block, sums);
}

}  // namespace

extern const AttentionKernel kAttentionX86Avx512Vnni;
const AttentionKernel kAttentionX86Avx512Vnni = {TokenSlice, ManyRows,          FewRows,
                                                 0,          kFixedRounding<1>, kFixedRounding<2>};

}  // namespace flatquant
