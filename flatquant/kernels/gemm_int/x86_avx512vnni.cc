// Integer GEMM with VPDPBUSD, which multiplies unsigned by signed bytes and adds
// four products to an int32 lane. The weights play the unsigned part: q + offset
// with offset 8 (nibbles) or 128 (bytes), so that
//
//   sum_c act[c] * q[c] = sum_c act[c] * (q[c] + offset) - offset * sum_c act[c]
//
// Layout: vnni_panels.h.
//
// GCC 12 reports its own _mm512_undefined_* as uninitialized (its bug 105593).
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/gemm_int/vnni_panels.h"

namespace flatquant {
namespace {

constexpr int64_t kPanelRows = kVnniPanelRows;
constexpr int64_t kGroupCols = kVnniGroupCols;
// 8 tokens x 32 rows fill 16 of the 32 vector registers with sums: enough
// independent chains to hide VPDPBUSD's latency, room for weights and unpacking.
constexpr int kTileTokens = 8;

// sum_c act[c] over a padded row.
int32_t SumRow(const int8_t* act, int64_t stride) {
  __m512i sum = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t c = 0; c < stride; c += 64) {
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(act + c));
  }
  return _mm512_reduce_add_epi32(sum);
}

inline __m512i Broadcast4(const int8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, 4);
  return _mm512_set1_epi32(word);
}

struct Tile {
  const int8_t* act;  // first of the tile's tokens
  int64_t act_stride;
  const uint8_t* panel;
  int64_t groups;
  const int32_t* act_sum;  // [tokens] times the weights' offset
  const float* act_scale;  // [tokens]
  const float* scale;      // [32]
  const float* bias;       // [32]
  float* y;
  int64_t y_stride;
  const float* residual;  // or nullptr
  int64_t residual_stride;
  __mmask16 mask0;  // rows of the panel that exist
  __mmask16 mask1;
};

template <int kTokens, bool kNibble>
void ComputeTile(const Tile& tile) {
  __m512i sum[kTokens][2];
  for (int m = 0; m < kTokens; ++m) sum[m][0] = sum[m][1] = _mm512_setzero_si512();
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  const uint8_t* panel = tile.panel;
  for (int64_t group = 0; group < tile.groups; ++group) {
    __m512i w[2][2];  // [columns 0..3, 4..7][rows 0..15, 16..31]
    if constexpr (kNibble) {
      for (int half = 0; half < 2; ++half) {
        const __m512i both = _mm512_load_si512(panel + half * 64);
        w[0][half] = _mm512_and_si512(both, nibble);
        w[1][half] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
      }
      panel += 128;
    } else {
      for (int i = 0; i < 4; ++i) w[i / 2][i % 2] = _mm512_load_si512(panel + i * 64);
      panel += 256;
    }
    const int8_t* act = tile.act + group * kGroupCols;
    for (int m = 0; m < kTokens; ++m) {
      const __m512i a0 = Broadcast4(act + m * tile.act_stride);
      const __m512i a1 = Broadcast4(act + m * tile.act_stride + 4);
      sum[m][0] = _mm512_dpbusd_epi32(sum[m][0], w[0][0], a0);
      sum[m][1] = _mm512_dpbusd_epi32(sum[m][1], w[0][1], a0);
      sum[m][0] = _mm512_dpbusd_epi32(sum[m][0], w[1][0], a1);
      sum[m][1] = _mm512_dpbusd_epi32(sum[m][1], w[1][1], a1);
    }
  }
  const __m512 scale[2] = {_mm512_loadu_ps(tile.scale), _mm512_loadu_ps(tile.scale + 16)};
  const __m512 bias[2] = {_mm512_loadu_ps(tile.bias), _mm512_loadu_ps(tile.bias + 16)};
  const __mmask16 mask[2] = {tile.mask0, tile.mask1};
  for (int m = 0; m < kTokens; ++m) {
    const __m512i offset = _mm512_set1_epi32(tile.act_sum[m]);
    const __m512 act_scale = _mm512_set1_ps(tile.act_scale[m]);
    for (int half = 0; half < 2; ++half) {
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[m][half], offset));
      __m512 y = _mm512_fmadd_ps(exact, _mm512_mul_ps(act_scale, scale[half]), bias[half]);
      if (tile.residual != nullptr) {
        const float* residual = tile.residual + m * tile.residual_stride + half * 16;
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask[half], residual));
      }
      _mm512_mask_storeu_ps(tile.y + m * tile.y_stride + half * 16, mask[half], y);
    }
  }
}

template <bool kNibble>
void ComputeTokens(const Tile& tile, int64_t tokens) {
  switch (tokens) {
    case 1:
      return ComputeTile<1, kNibble>(tile);
    case 2:
      return ComputeTile<2, kNibble>(tile);
    case 3:
      return ComputeTile<3, kNibble>(tile);
    case 4:
      return ComputeTile<4, kNibble>(tile);
    case 5:
      return ComputeTile<5, kNibble>(tile);
    case 6:
      return ComputeTile<6, kNibble>(tile);
    case 7:
      return ComputeTile<7, kNibble>(tile);
    default:
      return ComputeTile<kTileTokens, kNibble>(tile);
  }
}

__mmask16 RowMask(int64_t rows) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(rows, 0, 16)) - 1);
}

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  const GemmIntWeights& weights = *args.weights;
  const bool is_nibble = VnniIsNibble(weights.bits);
  const int32_t offset = VnniOffset(weights.bits);
  constexpr int64_t kChunk = 256;  // tokens whose sums are on the stack
  int32_t act_sum[kChunk];
  for (int64_t m0 = m_begin; m0 < m_end; m0 += kChunk) {
    const int64_t m1 = std::min(m_end, m0 + kChunk);
    for (int64_t m = m0; m < m1; ++m) {
      act_sum[m - m0] = offset * SumRow(args.act + m * args.act_stride, args.act_stride);
    }
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      for (int64_t m = m0; m < m1; m += kTileTokens) {
        const Tile tile = {
            args.act + m * args.act_stride,
            args.act_stride,
            weights.data.data() + row / kPanelRows * VnniPanelBytes(weights.bits, weights.cols),
            VnniSteps(weights.cols) * (kVnniStepCols / kVnniGroupCols),
            act_sum + (m - m0),
            args.act_scale + m,
            weights.scale.data() + row,
            weights.bias.data() + row,
            args.y + m * args.y_stride + row,
            args.y_stride,
            args.residual == nullptr ? nullptr : args.residual + m * args.residual_stride + row,
            args.residual_stride,
            RowMask(row_end - row),
            RowMask(row_end - row - 16)};
        const int64_t tokens = std::min<int64_t>(kTileTokens, m1 - m);
        if (is_nibble) {
          ComputeTokens<true>(tile, tokens);
        } else {
          ComputeTokens<false>(tile, tokens);
        }
      }
    }
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntX86Avx512Vnni;
const GemmIntKernel kGemmIntX86Avx512Vnni = {kPanelRows, VnniPackedBytes, VnniPack, Compute};

}  // namespace flatquant
