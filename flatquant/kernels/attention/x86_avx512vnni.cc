// Few rows over an integer cache in integers, with VPDPBUSD; the rest in float.

// GCC 12 takes the intrinsics' own don't-care operands for mistakes (its bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"

#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/attention/float_matrix.h"
#include "flatquant/kernels/attention/float_rows.h"
#include "flatquant/kernels/attention/integer_rows.h"

namespace flatquant {
namespace {

// sum + codes . digits in each lane. As assembly, because GCC 12 copies the sums of the
// intrinsic to and fro, and through memory.
inline __m512i AddProducts(__m512i sum, __m512i codes, __m512i digits) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(codes), "v"(digits));
  return sum;
}

// A tile of kRows rows (of three digits) and kPanels panels: up to 24 of the 32
// registers are sums.
template <int kRows, int kPanels>
inline void MultiplyTile(int64_t depth, const int8_t* digits, int64_t stride, const uint8_t* b,
                         int64_t panel_stride, float* c, int64_t c_stride, bool accumulate) {
  constexpr int kDigitRows = kRows * static_cast<int>(kDigits);
  __m512i sum[kDigitRows][kPanels];
  for (int r = 0; r < kDigitRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      sum[r][p] = _mm512_setzero_si512();
    }
  }
  int64_t d = 0;
  do {
    __m512i codes[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      codes[p] = _mm512_load_si512(b + p * panel_stride + d * 16);
    }
    for (int r = 0; r < kDigitRows; ++r) {
      int32_t four;
      std::memcpy(&four, digits + r * stride + d, sizeof(four));
      const __m512i broadcast = _mm512_set1_epi32(four);
      for (int p = 0; p < kPanels; ++p) {
        sum[r][p] = AddProducts(sum[r][p], codes[p], broadcast);
      }
    }
    d += 4;
  } while (d < depth);
  // Through memory: used in arithmetic right here, GCC 12 keeps the sums there in the
  // loop above, too.
  alignas(64) int32_t products[kDigitRows][kPanels * 16];
  for (int r = 0; r < kDigitRows; ++r) {
    for (int p = 0; p < kPanels; ++p) _mm512_store_si512(products[r] + p * 16, sum[r][p]);
  }
  __asm__("" : "+m"(products));
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      const auto load = [&](int d) { return _mm512_load_si512(products[3 * r + d] + p * 16); };
      __m512 product = FromDigits(load(0), load(1), load(2));
      float* out = c + r * c_stride + p * 16;
      if (accumulate) product = product + _mm512_loadu_ps(out);
      _mm512_storeu_ps(out, product);
    }
  }
}

template <int kPanels>
void MultiplyPanels(int64_t rows, int64_t depth, const int8_t* digits, int64_t stride,
                    const uint8_t* b, int64_t panel_stride, float* c, int64_t c_stride,
                    bool accumulate) {
  int64_t r = 0;
  for (; r + 2 <= rows; r += 2) {
    MultiplyTile<2, kPanels>(depth, digits + r * kDigits * stride, stride, b, panel_stride,
                             c + r * c_stride, c_stride, accumulate);
  }
  if (r < rows) {
    MultiplyTile<1, kPanels>(depth, digits + r * kDigits * stride, stride, b, panel_stride,
                             c + r * c_stride, c_stride, accumulate);
  }
}

struct VnniMultiplier {
  static constexpr int64_t PaddedRows(int64_t rows) { return rows * kDigits; }
  static void Run(int64_t rows, int64_t depth, const int8_t* digits, int64_t stride,
                  const uint8_t* b, int64_t panels, int64_t panel_stride, float* c,
                  int64_t c_stride, bool accumulate) {
    for (int64_t p = 0; p < panels; p += 4) {
      MultiplyPanels<4>(rows, depth, digits, stride, b + p * panel_stride, panel_stride, c + p * 16,
                        c_stride, accumulate);
    }
  }
};

bool IsInteger(const KvPlane& plane) {
  return plane.format == KvFormat::kNibble || plane.format == KvFormat::kByte;
}

void FewRows(const AttentionBlock& block, const AttentionSums& sums) noexcept {
  float* scores = ThreadScratch<ScoresTag, float>(static_cast<size_t>(block.rows() * kScoreStride));
  if (IsInteger(block.args->k)) {
    ScoreIntegers<VnniMultiplier>(block, scores);
  } else {
    ScoreFloats(block, scores);
  }
  for (int64_t r = 0; r < block.rows(); ++r) {
    Exponentials(block, r, scores + r * kScoreStride, sums.top + r, sums.total + r);
  }
  if (IsInteger(block.args->v)) {
    SumIntegers<VnniMultiplier>(block, scores, sums.values);
  } else {
    SumFloats(block, scores, sums.values);
  }
}

}  // namespace

extern const AttentionKernel kAttentionX86Avx512Vnni;
const AttentionKernel kAttentionX86Avx512Vnni = {TokenSlice, RunManyRows, FewRows};

}  // namespace flatquant
