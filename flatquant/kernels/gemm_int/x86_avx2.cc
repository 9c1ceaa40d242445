// Integer GEMM for AVX2, in panels of 16 rows.
//
// Nibbles: VPMADDUBSW multiplies unsigned by signed bytes and adds pairs into
// int16. Weights are stored as q + 8 in 0..15, so a pair of products is at most
// 2 * 15 * 128 = 3840 in magnitude and eight of them fit int16; after eight steps
// (32 columns) the sums are widened to int32. As with VNNI,
//   sum_c act[c] * q[c] = sum_c act[c] * (q[c] + 8) - 8 * sum_c act[c].
// A panel runs over groups of 8 columns of two 32-byte vectors (rows 0..7 and
// 8..15), in which 32-bit lane i holds row i's columns 0..3 in its low nibbles and
// 4..7 in its high ones.
//
// Bytes: products of full bytes would saturate there, so both sides are widened to
// int16 and VPMADDWD adds pairs into int32. A panel runs over pairs of columns of
// 32 bytes: 16 rows of two columns.
#include <immintrin.h>

#include <algorithm>
#include <cstring>

#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/gemm_int/nibble_lanes.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct WideActTag {};

constexpr int64_t kPanelRows = 16;
constexpr int64_t kBlockCols = 32;  // between two widenings; panels are padded to it
// 4 tokens x 2 vectors of int16 sums, 4 vectors of weights and the constants fill
// the 16 registers.
constexpr int kTileTokens = 4;

bool IsNibble(int bits) { return bits <= 4; }

int64_t PaddedCols(int64_t cols) { return (cols + kBlockCols - 1) / kBlockCols * kBlockCols; }

size_t PanelBytes(int bits, int64_t cols) {
  return static_cast<size_t>(PaddedCols(cols) * kPanelRows / (IsNibble(bits) ? 2 : 1));
}

size_t PackedBytes(int bits, int64_t rows, int64_t cols) noexcept {
  return static_cast<size_t>((rows + kPanelRows - 1) / kPanelRows) * PanelBytes(bits, cols);
}

void PackNibbleRow(const uint8_t* row, int64_t cols, int64_t lane, uint8_t* panel) {
  for (int64_t group = 0; group < (cols + 7) / 8; ++group) {
    const uint32_t word = NibbleLane(row, (cols + 1) / 2, group);
    std::memcpy(panel + group * 64 + lane * 4, &word, 4);
  }
}

void PackByteRow(const uint8_t* row, int64_t cols, int64_t lane, uint8_t* panel) {
  for (int64_t c = 0; c < cols; ++c) panel[c / 2 * 32 + lane * 2 + c % 2] = row[c];
}

// Columns past the end meet activations of zero: their weights may be anything.
void Pack(const GemmIntSource& source, int64_t row_begin, int64_t row_end,
          uint8_t* packed) noexcept {
  const uint8_t* bytes = reinterpret_cast<const uint8_t*>(source.weight);
  const size_t panel_bytes = PanelBytes(source.bits, source.cols);
  for (int64_t row = row_begin; row < row_end; ++row) {
    uint8_t* panel = packed + static_cast<size_t>(row / kPanelRows) * panel_bytes;
    const int64_t lane = row % kPanelRows;
    if (IsNibble(source.bits)) {
      PackNibbleRow(bytes + row * ((source.cols + 1) / 2), source.cols, lane, panel);
    } else {
      PackByteRow(bytes + row * source.cols, source.cols, lane, panel);
    }
  }
}

struct Tile {
  const int8_t* act;  // first of the tile's tokens
  int64_t act_stride;
  const int16_t* wide_act;  // the same, [tokens, padded_cols], for bytes
  const uint8_t* panel;
  int64_t padded_cols;
};

using Sums = __m256i[kTileTokens][2];

template <int kTokens>
void SumNibbles(const Tile& tile, Sums& sum) {
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  for (int64_t block = 0; block < tile.padded_cols; block += kBlockCols) {
    __m256i part[kTokens][2];
    for (int m = 0; m < kTokens; ++m) part[m][0] = part[m][1] = _mm256_setzero_si256();
    for (int64_t c = block; c < block + kBlockCols; c += 8) {
      const __m256i* group = reinterpret_cast<const __m256i*>(tile.panel + c * 8);
      const __m256i both0 = _mm256_load_si256(group);
      const __m256i both1 = _mm256_load_si256(group + 1);
      const __m256i w[2][2] = {{_mm256_and_si256(both0, low), _mm256_and_si256(both1, low)},
                               {_mm256_and_si256(_mm256_srli_epi16(both0, 4), low),
                                _mm256_and_si256(_mm256_srli_epi16(both1, 4), low)}};
      for (int half = 0; half < 2; ++half) {
        for (int m = 0; m < kTokens; ++m) {
          int32_t word;
          std::memcpy(&word, tile.act + m * tile.act_stride + c + 4 * half, 4);
          const __m256i a = _mm256_set1_epi32(word);
          part[m][0] = _mm256_add_epi16(part[m][0], _mm256_maddubs_epi16(w[half][0], a));
          part[m][1] = _mm256_add_epi16(part[m][1], _mm256_maddubs_epi16(w[half][1], a));
        }
      }
    }
    for (int m = 0; m < kTokens; ++m) {
      for (int j = 0; j < 2; ++j) {
        sum[m][j] = _mm256_add_epi32(sum[m][j], _mm256_madd_epi16(part[m][j], ones));
      }
    }
  }
}

template <int kTokens>
void SumBytes(const Tile& tile, Sums& sum) {
  __m256i part[kTokens][2];
  for (int m = 0; m < kTokens; ++m) part[m][0] = part[m][1] = _mm256_setzero_si256();
  for (int64_t c = 0; c < tile.padded_cols; c += 2) {
    const __m128i* pair = reinterpret_cast<const __m128i*>(tile.panel + c * 16);
    const __m256i w0 = _mm256_cvtepi8_epi16(_mm_load_si128(pair));
    const __m256i w1 = _mm256_cvtepi8_epi16(_mm_load_si128(pair + 1));
    for (int m = 0; m < kTokens; ++m) {
      int32_t word;
      std::memcpy(&word, tile.wide_act + m * tile.padded_cols + c, 4);
      const __m256i a = _mm256_set1_epi32(word);
      part[m][0] = _mm256_add_epi32(part[m][0], _mm256_madd_epi16(w0, a));
      part[m][1] = _mm256_add_epi32(part[m][1], _mm256_madd_epi16(w1, a));
    }
  }
  for (int m = 0; m < kTokens; ++m) {
    for (int j = 0; j < 2; ++j) sum[m][j] = part[m][j];
  }
}

template <bool kNibble>
void SumTile(const Tile& tile, int64_t tokens, Sums& sum) {
  for (auto& token : sum) token[0] = token[1] = _mm256_setzero_si256();
  switch (tokens) {
    case 1:
      return kNibble ? SumNibbles<1>(tile, sum) : SumBytes<1>(tile, sum);
    case 2:
      return kNibble ? SumNibbles<2>(tile, sum) : SumBytes<2>(tile, sum);
    case 3:
      return kNibble ? SumNibbles<3>(tile, sum) : SumBytes<3>(tile, sum);
    default:
      return kNibble ? SumNibbles<4>(tile, sum) : SumBytes<4>(tile, sum);
  }
}

int32_t SumRow(const int8_t* act, int64_t cols) {
  int32_t sum = 0;
  for (int64_t c = 0; c < cols; ++c) sum += act[c];
  return sum;
}

// Activations as int16, for bytes.
const int16_t* Widen(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t padded_cols) {
  int16_t* wide =
      ThreadScratch<WideActTag, int16_t>(static_cast<size_t>((m_end - m_begin) * padded_cols));
  for (int64_t m = m_begin; m < m_end; ++m) {
    const int8_t* act = args.act + m * args.act_stride;
    int16_t* row = wide + (m - m_begin) * padded_cols;
    for (int64_t c = 0; c < padded_cols; ++c) row[c] = act[c];
  }
  return wide;
}

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  const GemmIntWeights& weights = *args.weights;
  const bool is_nibble = IsNibble(weights.bits);
  const int64_t padded_cols = PaddedCols(weights.cols);
  const int16_t* wide = is_nibble ? nullptr : Widen(args, m_begin, m_end, padded_cols);
  const size_t panel_bytes = PanelBytes(weights.bits, weights.cols);
  for (int64_t m0 = m_begin; m0 < m_end; m0 += kTileTokens) {
    const int64_t tokens = std::min<int64_t>(kTileTokens, m_end - m0);
    int32_t offset[kTileTokens] = {};
    for (int64_t m = 0; is_nibble && m < tokens; ++m) {
      offset[m] = 8 * SumRow(args.act + (m0 + m) * args.act_stride, weights.cols);
    }
    for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
      const Tile tile = {args.act + m0 * args.act_stride, args.act_stride,
                         is_nibble ? nullptr : wide + (m0 - m_begin) * padded_cols,
                         weights.data.data() + static_cast<size_t>(row / kPanelRows) * panel_bytes,
                         padded_cols};
      Sums sum;
      if (is_nibble) {
        SumTile<true>(tile, tokens, sum);
      } else {
        SumTile<false>(tile, tokens, sum);
      }
      alignas(32) int32_t exact[kPanelRows];
      const int64_t rows = std::min(kPanelRows, row_end - row);
      for (int64_t m = 0; m < tokens; ++m) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(exact), sum[m][0]);
        _mm256_store_si256(reinterpret_cast<__m256i*>(exact + 8), sum[m][1]);
        float* y = args.y + (m0 + m) * args.y_stride + row;
        const float* residual = args.residual == nullptr
                                    ? nullptr
                                    : args.residual + (m0 + m) * args.residual_stride + row;
        const float act_scale = args.act_scale[m0 + m];
        const float* scale = weights.scale.data() + row;
        const float* bias = weights.bias.data() + row;
        for (int64_t r = 0; r < rows; ++r) {
          const float product = static_cast<float>(exact[r] - offset[m]) * (act_scale * scale[r]);
          y[r] = product + bias[r] + (residual == nullptr ? 0.0f : residual[r]);
        }
      }
    }
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntX86Avx2;
const GemmIntKernel kGemmIntX86Avx2 = {kPanelRows, PackedBytes, Pack, Compute};

}  // namespace flatquant
