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
#include <utility>

#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/gemm_int/gemm_scratch.h"
#include "flatquant/kernels/gemm_int/vnni_panels.h"

namespace flatquant {
namespace {

constexpr int64_t kPanelRows = kVnniPanelRows;
constexpr int64_t kGroupCols = kVnniGroupCols;
// 8 tokens x 32 rows: 16 sums hide VPDPBUSD's latency, and the unpacking of a group,
// 6 operations, is spread over 32 products. 24 sums would spread it further, but run
// at two thirds of the speed on Zen 4.
constexpr int kMaxTokens = 8;
// Few tokens read two panels side by side: more independent sums, and two streams
// from memory, which one core needs to draw its share of the bandwidth.
constexpr int kTwoPanelTokens = kMaxTokens / 2;
// Bytes of a panel to fetch ahead, from memory to the L2 and from there to the L1: its
// latency times one core's share of the bandwidth is some kilobytes, and fetching
// straight into the L1 would keep its few miss buffers busy for as long.
constexpr int64_t kPrefetchL2Bytes = 8192;
constexpr int64_t kPrefetchL1Bytes = 1024;

// sum_c act[c]; beyond the columns there are zeros.
int32_t SumRow(const int8_t* act, int64_t cols) {
  __m512i sum = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t c = 0; c < cols; c += 64) {
    sum = _mm512_dpbusd_epi32(sum, ones, _mm512_loadu_si512(act + c));
  }
  return _mm512_reduce_add_epi32(sum);
}

inline __m512i Broadcast4(const int8_t* bytes) {
  int32_t word;
  std::memcpy(&word, bytes, 4);
  return _mm512_set1_epi32(word);
}

__mmask16 RowMask(int64_t rows) {
  return static_cast<__mmask16>((1u << std::clamp<int64_t>(rows, 0, 16)) - 1);
}

struct Tile {
  const GemmIntArgs& args;
  const int32_t* act_sum;  // [tokens of the tile], times the weights' offset
  int64_t m;               // first token
  int64_t row;             // first row, a panel's
  int64_t row_end;
};

template <int kTokens, int kVectors>
void WriteTile(const Tile& tile, const __m512i (&sum)[kTokens][kVectors]) {
  const GemmIntArgs& args = tile.args;
  for (int v = 0; v < kVectors; ++v) {
    const int64_t row = tile.row + v * 16;
    const __mmask16 mask = RowMask(tile.row_end - row);
    if (mask == 0) break;
    const __m512 scale = _mm512_loadu_ps(args.weights->scale.data() + row);
    const __m512 bias = _mm512_loadu_ps(args.weights->bias.data() + row);
    for (int m = 0; m < kTokens; ++m) {
      const int64_t token = tile.m + m;
      const __m512i offset = _mm512_set1_epi32(tile.act_sum[m]);
      const __m512 exact = _mm512_cvtepi32_ps(_mm512_sub_epi32(sum[m][v], offset));
      const __m512 both = _mm512_mul_ps(_mm512_set1_ps(args.act_scale[token]), scale);
      __m512 y = _mm512_fmadd_ps(exact, both, bias);
      if (args.residual != nullptr) {
        const float* residual = args.residual + token * args.residual_stride + row;
        y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, residual));
      }
      _mm512_mask_storeu_ps(args.y + token * args.y_stride + row, mask, y);
    }
  }
}

template <int kTokens, int kPanels, bool kNibble>
void ComputeTile(const Tile& tile) {
  constexpr int kVectors = 2 * kPanels;
  constexpr int64_t kGroupBytes = kNibble ? 128 : 256;
  const GemmIntWeights& weights = *tile.args.weights;
  const int64_t panel_bytes = VnniPanelBytes(weights.bits, weights.cols);
  const uint8_t* panel = weights.data.data() + tile.row / kPanelRows * panel_bytes;
  const int64_t act_stride = tile.args.act_stride;
  const int8_t* act = tile.args.act + tile.m * act_stride;
  const int8_t* act_end = act + VnniSteps(weights.cols) * kVnniStepCols;
  const __m512i nibble = _mm512_set1_epi8(0x0f);
  __m512i sum[kTokens][kVectors];
  for (auto& token : sum) {
    for (__m512i& vector : token) vector = _mm512_setzero_si512();
  }
  for (; act != act_end; act += kGroupCols, panel += kGroupBytes) {
    __m512i w[2][kVectors];  // [columns 0..3, 4..7][rows 0..15, 16..31, ...]
    for (int p = 0; p < kPanels; ++p) {
      const uint8_t* group = panel + p * panel_bytes;
      for (int64_t byte = 0; byte < kGroupBytes; byte += 64) {
        const char* line = reinterpret_cast<const char*>(group + byte);
        _mm_prefetch(line + kPrefetchL2Bytes, _MM_HINT_T1);
        _mm_prefetch(line + kPrefetchL1Bytes, _MM_HINT_T0);
      }
      for (int half = 0; half < 2; ++half) {
        if constexpr (kNibble) {
          const __m512i both = _mm512_load_si512(group + half * 64);
          w[0][2 * p + half] = _mm512_and_si512(both, nibble);
          w[1][2 * p + half] = _mm512_and_si512(_mm512_srli_epi16(both, 4), nibble);
        } else {
          w[0][2 * p + half] = _mm512_load_si512(group + half * 64);
          w[1][2 * p + half] = _mm512_load_si512(group + 128 + half * 64);
        }
      }
    }
    for (int quad = 0; quad < 2; ++quad) {
      for (int m = 0; m < kTokens; ++m) {
        const __m512i a = Broadcast4(act + m * act_stride + 4 * quad);
        for (int v = 0; v < kVectors; ++v) {
          sum[m][v] = _mm512_dpbusd_epi32(sum[m][v], w[quad][v], a);
        }
      }
    }
  }
  WriteTile(tile, sum);
}

// ComputeTile<1..kMaxTokens>. As many panels as there are, at most two.
using TileFunction = void (*)(const Tile&);

template <int kPanels, bool kNibble, int... kTokens>
TileFunction Choose(int64_t tokens, std::integer_sequence<int, kTokens...>) {
  static constexpr TileFunction kFunctions[] = {ComputeTile<kTokens + 1, kPanels, kNibble>...};
  return kFunctions[tokens - 1];
}

TileFunction ChooseTile(int64_t tokens, int panels, bool is_nibble) {
  constexpr std::make_integer_sequence<int, kMaxTokens> kAny;
  constexpr std::make_integer_sequence<int, kTwoPanelTokens> kFew;
  if (panels == 2) {
    return is_nibble ? Choose<2, true>(tokens, kFew) : Choose<2, false>(tokens, kFew);
  }
  return is_nibble ? Choose<1, true>(tokens, kAny) : Choose<1, false>(tokens, kAny);
}

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  const bool is_nibble = VnniIsNibble(args.weights->bits);
  const int64_t tokens = m_end - m_begin;
  int32_t* act_sum =
      reinterpret_cast<int32_t*>(GemmIntScratch(static_cast<size_t>(tokens) * sizeof(int32_t)));
  for (int64_t m = 0; m < tokens; ++m) {
    act_sum[m] = VnniOffset(args.weights->bits) *
                 SumRow(args.act + (m_begin + m) * args.act_stride, args.weights->cols);
  }
  // Tiles of about equal size: 12 tokens are 6 + 6, not 8 + 4.
  const int64_t tiles = (tokens + kMaxTokens - 1) / kMaxTokens;
  const int64_t tile_tokens = (tokens + tiles - 1) / tiles;
  for (int64_t row = row_begin; row < row_end;) {
    const int panels = tile_tokens <= kTwoPanelTokens && row_end - row > kPanelRows ? 2 : 1;
    for (int64_t m = 0; m < tokens; m += tile_tokens) {
      const TileFunction compute = ChooseTile(std::min(tile_tokens, tokens - m), panels, is_nibble);
      compute({args, act_sum + m, m_begin + m, row, row_end});
    }
    row += panels * kPanelRows;
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntX86Avx512Vnni;
const GemmIntKernel kGemmIntX86Avx512Vnni = {kPanelRows, VnniPackedBytes, VnniPack, Compute};

}  // namespace flatquant
