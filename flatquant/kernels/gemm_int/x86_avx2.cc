// Integer GEMM for AVX2, in panels of 16 rows.
//
// Nibbles: VPMADDUBSW multiplies unsigned by signed bytes and adds pairs into
// int16. Weights are stored as q + 8 in 0..15, so a pair of products is at most
// 2 * 15 * 2^(act_bits-1) in magnitude: 3840 for 8 bits, 240 for 4. As many of them
// as fit int16 are added there, 8 or 136, before the sums are widened to int32. As
// with VNNI,
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
constexpr int64_t kGroupCols = 8;  // panels are padded to it
// 4 tokens x 2 vectors of int16 sums, 4 vectors of weights, an activation, a product
// and a constant fill the 16 registers.
constexpr int kTileTokens = 4;
// Tokens whose rows stay in the L2 while the panels pass.
constexpr int64_t kChunkTokens = 64;
// As for VNNI: some hundred nanoseconds' worth of one core's bandwidth.
constexpr int64_t kPrefetchBytes = 2048;

bool IsNibble(int bits) { return bits <= 4; }

int64_t PaddedCols(int64_t cols) { return (cols + kGroupCols - 1) / kGroupCols * kGroupCols; }

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

// Columns whose products int16 can add up: 4 per step, in whole groups.
int64_t Int16Cols(int act_bits) {
  const int64_t pair = 2 * 15 * (int64_t{1} << (act_bits - 1));
  return 32767 / pair * 4 / kGroupCols * kGroupCols;
}

struct Tile {
  const int8_t* act;  // first of the tile's tokens
  int64_t act_stride;
  const int16_t* wide_act;  // the same, [tokens, padded_cols], for bytes
  const uint8_t* panel;
  int64_t padded_cols;
  int64_t int16_cols;
};

using Sums = __m256i[kTileTokens][2];

inline void Prefetch(const uint8_t* panel) {
  _mm_prefetch(reinterpret_cast<const char*>(panel + kPrefetchBytes), _MM_HINT_T0);
}

template <int kTokens>
void SumNibbles(const Tile& tile, Sums& sum) {
  const __m256i low = _mm256_set1_epi8(0x0f);
  const __m256i ones = _mm256_set1_epi16(1);
  const uint8_t* panel = tile.panel;
  const int8_t* act = tile.act;
  for (int64_t block = 0; block < tile.padded_cols; block += tile.int16_cols) {
    const int64_t groups = std::min(tile.int16_cols, tile.padded_cols - block) / kGroupCols;
    __m256i part[kTokens][2];
    for (int m = 0; m < kTokens; ++m) part[m][0] = part[m][1] = _mm256_setzero_si256();
    for (int64_t group = 0; group < groups; ++group) {
      const __m256i* both = reinterpret_cast<const __m256i*>(panel);
      Prefetch(panel);
      for (int half = 0; half < 2; ++half) {
        __m256i w[2];
        for (int v = 0; v < 2; ++v) {
          const __m256i bits = _mm256_load_si256(both + v);
          w[v] = _mm256_and_si256(half == 0 ? bits : _mm256_srli_epi16(bits, 4), low);
        }
        for (int m = 0; m < kTokens; ++m) {
          int32_t word;
          std::memcpy(&word, act + m * tile.act_stride + 4 * half, 4);
          const __m256i a = _mm256_set1_epi32(word);
          part[m][0] = _mm256_add_epi16(part[m][0], _mm256_maddubs_epi16(w[0], a));
          part[m][1] = _mm256_add_epi16(part[m][1], _mm256_maddubs_epi16(w[1], a));
        }
      }
      panel += 64;
      act += kGroupCols;
    }
    for (int m = 0; m < kTokens; ++m) {
      for (int v = 0; v < 2; ++v) {
        sum[m][v] = _mm256_add_epi32(sum[m][v], _mm256_madd_epi16(part[m][v], ones));
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
    Prefetch(tile.panel + c * 16);
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

// y of a tile. offset: [tokens], what the sums are too large by.
void WriteTile(const GemmIntArgs& args, const Sums& sum, const int32_t* offset, int64_t m0,
               int64_t tokens, int64_t row, int64_t rows) {
  const float* scale = args.weights->scale.data() + row;
  const float* bias = args.weights->bias.data() + row;
  for (int64_t m = 0; m < tokens; ++m) {
    alignas(32) int32_t exact[kPanelRows];
    _mm256_store_si256(reinterpret_cast<__m256i*>(exact), sum[m][0]);
    _mm256_store_si256(reinterpret_cast<__m256i*>(exact + 8), sum[m][1]);
    const float act_scale = args.act_scale[m0 + m];
    float out[kPanelRows];
    for (int64_t r = 0; r < kPanelRows; ++r) {
      out[r] = static_cast<float>(exact[r] - offset[m]) * (act_scale * scale[r]) + bias[r];
    }
    if (args.residual != nullptr) {
      const float* residual = args.residual + (m0 + m) * args.residual_stride + row;
      for (int64_t r = 0; r < rows; ++r) out[r] += residual[r];
    }
    std::memcpy(args.y + (m0 + m) * args.y_stride + row, out,
                static_cast<size_t>(rows) * sizeof(float));
  }
}

template <bool kNibble>
void ComputeChunk(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
                  int64_t row_end) {
  const GemmIntWeights& weights = *args.weights;
  const int64_t padded_cols = PaddedCols(weights.cols);
  const int16_t* wide = kNibble ? nullptr : Widen(args, m_begin, m_end, padded_cols);
  int32_t offset[kChunkTokens] = {};
  for (int64_t m = m_begin; kNibble && m < m_end; ++m) {
    offset[m - m_begin] = 8 * SumRow(args.act + m * args.act_stride, weights.cols);
  }
  for (int64_t row = row_begin; row < row_end; row += kPanelRows) {
    const uint8_t* panel = weights.data.data() + static_cast<size_t>(row / kPanelRows) *
                                                     PanelBytes(weights.bits, weights.cols);
    for (int64_t m = m_begin; m < m_end; m += kTileTokens) {
      const int64_t tokens = std::min<int64_t>(kTileTokens, m_end - m);
      const Tile tile = {args.act + m * args.act_stride,
                         args.act_stride,
                         kNibble ? nullptr : wide + (m - m_begin) * padded_cols,
                         panel,
                         padded_cols,
                         Int16Cols(args.act_bits)};
      Sums sum;
      SumTile<kNibble>(tile, tokens, sum);
      WriteTile(args, sum, offset + (m - m_begin), m, tokens, row,
                std::min(kPanelRows, row_end - row));
    }
  }
}

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  for (int64_t m = m_begin; m < m_end; m += kChunkTokens) {
    const int64_t chunk_end = std::min(m_end, m + kChunkTokens);
    if (IsNibble(args.weights->bits)) {
      ComputeChunk<true>(args, m, chunk_end, row_begin, row_end);
    } else {
      ComputeChunk<false>(args, m, chunk_end, row_begin, row_end);
    }
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntX86Avx2;
const GemmIntKernel kGemmIntX86Avx2 = {kPanelRows, PackedBytes, Pack, Compute};

}  // namespace flatquant
