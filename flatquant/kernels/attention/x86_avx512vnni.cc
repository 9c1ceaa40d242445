// Integer caches in integers, with VPDPBUSD; float ones in float.

// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/float_matrix.h"
#include "flatquant/kernels/attention/float_rows.h"
#include "flatquant/kernels/attention/integer_rows.h"
#include "flatquant/kernels/unroll.h"

namespace flatquant {
namespace {

// sum + digits . codes in each lane. As assembly, because GCC 12 copies the sums of the
// intrinsic to and fro, and through memory.
template <bool kIsSigned>
[[gnu::always_inline]] inline __m512i AddProducts(__m512i sum, __m512i digits, __m512i codes) {
  if constexpr (kIsSigned) {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(digits), "v"(codes));
  } else {
    __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(digits));
  }
  return sum;
}

struct VnniMultiplier {
  // Three rows of two digits and four panels: 24 of the 32 registers are sums, 5 operands.
  static constexpr int kRows = 3;
  static constexpr int kPanels = 4;
  static constexpr int64_t Lines(int64_t depth, int64_t panels) { return depth * panels / 16; }

  template <bool kIsSigned>
  static void Run(int64_t rows, int64_t depth, const uint8_t* digits, int64_t stride,
                  const uint8_t* codes, int64_t panels, int64_t panel_bytes, float* products,
                  int64_t product_stride, const uint8_t* ahead, int64_t step) {
    const auto run = rows == 3   ? Tile<kIsSigned, 3>
                     : rows == 2 ? Tile<kIsSigned, 2>
                                 : Tile<kIsSigned, 1>;
    for (int64_t p = 0; p < panels; p += kPanels) {
      run(depth, digits, stride, codes + p * panel_bytes, panel_bytes, products + p * 16,
          product_stride, ahead + p / kPanels * (depth / 4) * step, step);
    }
  }

 private:
  template <bool kIsSigned, int kSome>
  static void Tile(int64_t depth, const uint8_t* digits, int64_t stride, const uint8_t* codes,
                   int64_t panel_bytes, float* products, int64_t product_stride,
                   const uint8_t* ahead, int64_t step) {
    constexpr int kDigitRows = kSome * static_cast<int>(kDigits);
    __m512i sum[kDigitRows][kPanels];
    Unroll<kDigitRows>(
        [&](auto r) { Unroll<kPanels>([&](auto p) { sum[r][p] = _mm512_setzero_si512(); }); });
    int64_t d = 0;
    do {
      __m512i panel[kPanels];
      Unroll<kPanels>(
          [&](auto p) { panel[p] = _mm512_load_si512(codes + p * panel_bytes + d * 16); });
      Unroll<kDigitRows>([&](auto r) {
        int32_t four;
        std::memcpy(&four, digits + r * stride + d, sizeof(four));
        const __m512i broadcast = _mm512_set1_epi32(four);
        Unroll<kPanels>(
            [&](auto p) { sum[r][p] = AddProducts<kIsSigned>(sum[r][p], broadcast, panel[p]); });
      });
      _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      ahead += step;
      d += 4;
    } while (d < depth);
    Unroll<kSome>([&](auto r) {
      Unroll<kPanels>([&](auto p) {
        _mm512_storeu_ps(products + r * product_stride + p * 16,
                         FromDigits(sum[2 * r][p], sum[2 * r + 1][p]));
      });
    });
  }
};

bool IsInteger(const KvPlane& plane) {
  return plane.format == KvFormat::kNibble || plane.format == KvFormat::kByte;
}

bool IsInteger(const AttentionBlock& block) {
  return IsInteger(block.args->k) && IsInteger(block.args->v);
}

void ManyRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  if (!IsInteger(block)) return RunManyRows(block, sums);
  IntegerAttention<VnniMultiplier>(block, sums).Run();
}

void FewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  if (!IsInteger(block)) return RunFewRows(block, sums);
  IntegerAttention<VnniMultiplier>(block, sums).Run();
}

}  // namespace

extern const AttentionKernel kAttentionX86Avx512Vnni;
const AttentionKernel kAttentionX86Avx512Vnni = {TokenSlice, ManyRows, FewRows, 0, kFixedRounding};

}  // namespace flatquant
