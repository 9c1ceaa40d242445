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

// A tile of kRows rows and kPanels panels: 24 of the 32 registers are sums.
template <int kRows, int kPanels>
inline void MultiplyTile(int64_t depth, const int8_t* a, int64_t a_stride, const uint8_t* b,
                         int64_t panel_stride, int32_t* c, int64_t c_stride, bool accumulate) {
  __m512i sum[kRows][kPanels];
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      sum[r][p] =
          accumulate ? _mm512_loadu_si512(c + r * c_stride + p * 16) : _mm512_setzero_si512();
    }
  }
  for (int64_t d = 0; d < depth; d += 4) {
    __m512i codes[kPanels];
    for (int p = 0; p < kPanels; ++p) {
      codes[p] = _mm512_load_si512(b + p * panel_stride + d * 16);
    }
    for (int r = 0; r < kRows; ++r) {
      int32_t four;
      std::memcpy(&four, a + r * a_stride + d, sizeof(four));
      const __m512i digits = _mm512_set1_epi32(four);
      for (int p = 0; p < kPanels; ++p) {
        sum[r][p] = _mm512_dpbusd_epi32(sum[r][p], codes[p], digits);
      }
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int p = 0; p < kPanels; ++p) {
      _mm512_storeu_si512(c + r * c_stride + p * 16, sum[r][p]);
    }
  }
}

template <int kPanels>
void MultiplyPanels(int64_t rows, int64_t depth, const int8_t* a, int64_t a_stride,
                    const uint8_t* b, int64_t panel_stride, int32_t* c, int64_t c_stride,
                    bool accumulate) {
  int64_t r = 0;
  for (; r + 6 <= rows; r += 6) {
    MultiplyTile<6, kPanels>(depth, a + r * a_stride, a_stride, b, panel_stride, c + r * c_stride,
                             c_stride, accumulate);
  }
  for (; r < rows; r += 3) {
    MultiplyTile<3, kPanels>(depth, a + r * a_stride, a_stride, b, panel_stride, c + r * c_stride,
                             c_stride, accumulate);
  }
}

struct VnniMultiplier {
  static constexpr int64_t Rows(int64_t rows) { return rows * kDigits; }
  static void Run(int64_t rows, int64_t depth, const int8_t* a, int64_t a_stride, const uint8_t* b,
                  int64_t panels, int64_t panel_stride, int32_t* c, int64_t c_stride,
                  bool accumulate) {
    int64_t p = 0;
    for (; p + 4 <= panels; p += 4) {
      MultiplyPanels<4>(rows, depth, a, a_stride, b + p * panel_stride, panel_stride, c + p * 16,
                        c_stride, accumulate);
    }
    for (; p < panels; ++p) {
      MultiplyPanels<1>(rows, depth, a, a_stride, b + p * panel_stride, panel_stride, c + p * 16,
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
