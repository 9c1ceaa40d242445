#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "flatquant/kernels/amx_tiles.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/gemm_int/gemm_scratch.h"
#include "flatquant/kernels/gemm_int/vnni_panels.h"

// Integer GEMM on a tile unit (amx_tiles.h), over the VNNI kernel's panels. The
// unit is a template's argument, so that the tests run all of this without AMX.
//
// Weights stay 4-bit in memory. A task widens a block of them, a panel's 32 rows by
// kBlockCols columns, to int8 tiles once and multiplies it by all its tokens, 32 at a
// time: 2 x 2 tiles of sums. The sums of a block of columns wait in scratch memory
// for the next block's.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Two tiles, the halves of a panel's rows, of one step of 64 columns.
inline constexpr int64_t kWideStepBytes = 2 * kTileSize;

// Far enough ahead for lines to have come from memory: few tokens leave no time for
// it in between.
inline constexpr int64_t kWidenAheadBytes = 8192;

// One vector of nibbles to two of int8, 64 bytes each. The loops here are written
// for the vectoriser: whole vectors, no dependence.
inline void WidenNibbles(const uint8_t* __restrict packed, int8_t* __restrict wide) {
  for (int64_t i = 0; i < 64; ++i) {
    wide[i] = static_cast<int8_t>((packed[i] & 15) - 8);
    wide[64 + i] = static_cast<int8_t>((packed[i] >> 4) - 8);
  }
}

inline void WidenBytes(const uint8_t* __restrict packed, int8_t* __restrict wide) {
  for (int64_t i = 0; i < 64; ++i) wide[i] = static_cast<int8_t>(packed[i] ^ 0x80);
}

// Widens `steps` steps of a panel to signed tiles.
inline void WidenPanel(bool is_nibble, const uint8_t* packed, int64_t steps, int8_t* wide) {
  const int64_t vectors = is_nibble ? 8 : 16;  // of a step's half of the rows
  const int64_t wide_bytes = kTileSize / vectors;
  for (int64_t step = 0; step < steps; ++step) {
    for (int64_t vector = 0; vector < vectors; ++vector) {
      for (int64_t half = 0; half < 2; ++half) {
        int8_t* to = wide + half * kTileSize + vector * wide_bytes;
        if (is_nibble) {
          WidenNibbles(packed, to);
        } else {
          WidenBytes(packed, to);
        }
        __builtin_prefetch(packed + kWidenAheadBytes, 0, 2);
        packed += 64;
      }
    }
    wide += kWideStepBytes;
  }
}

// One product: tokens x a panel's rows x a block's columns.
struct TileProduct {
  const int8_t* act;  // first token, first column
  int64_t act_stride;
  const int8_t* wide;  // the panel's tiles
  int64_t steps;
  int32_t* sums;  // tiles [token tile][row tile], row_tiles of them in a row of tiles
  int64_t row_tiles;
  bool first;            // nothing was summed before
  const uint8_t* fetch;  // weights to bring into the L2 meanwhile
  int64_t fetch_lines;
};

template <typename Tiles, int kTokenTiles>
void Multiply(Tiles& tiles, TileProduct p) {
  constexpr int kRowTiles = 2;
  constexpr int kA = kTokenTiles * kRowTiles;  // tiles 0.. are sums, then activations
  constexpr int kB = kA + kTokenTiles;         // and weights
  static_assert(kB + kRowTiles <= 8);
  const auto for_each = []<int... i>(std::integer_sequence<int, i...>, const auto& f) {
    (f(std::integral_constant<int, i>()), ...);
  };
  constexpr std::make_integer_sequence<int, kTokenTiles> kTokens;
  constexpr std::make_integer_sequence<int, kRowTiles> kRows;
  const auto sums = [&](int i, int j) {
    return p.sums + (i * p.row_tiles + j) * (kTileSize / static_cast<int64_t>(sizeof(int32_t)));
  };
  for_each(kTokens, [&](auto i) {
    for_each(kRows, [&](auto j) {
      if (p.first) {
        tiles.template Zero<i * kRowTiles + j>();
      } else {
        tiles.template Load<i * kRowTiles + j>(sums(i, j), kTileBytes);
      }
    });
  });
  for (int64_t step = 0; step < p.steps; ++step) {
    const int8_t* act = p.act + step * kTileBytes;
    const int8_t* wide = p.wide + step * kWideStepBytes;
    for_each(kRows, [&](auto j) {
      tiles.template Load<kB + j>(wide + j * kTileSize, kTileBytes);
      for_each(kTokens, [&](auto i) {
        if constexpr (j == 0) {
          tiles.template Load<kA + i>(act + i * kTileHeight * p.act_stride, p.act_stride);
        }
        tiles.template DotInt8<i * kRowTiles + j, kA + i, kB + j>();
      });
    });
    for (int64_t line = step; line < p.fetch_lines; line += p.steps) {
      __builtin_prefetch(p.fetch + line * 64, 0, 2);
    }
  }
  for_each(kTokens, [&](auto i) {
    for_each(kRows,
             [&](auto j) { tiles.template Store<i * kRowTiles + j>(sums(i, j), kTileBytes); });
  });
}

// y of one token and 16 rows from their sums; fewer where the output ends.
inline void WriteRow(const GemmIntArgs& args, const int32_t* sum, int64_t m, int64_t row,
                     int64_t rows, bool stream) {
  const float* scale = args.weights->scale.data() + row;
  const float* bias = args.weights->bias.data() + row;
  const float act_scale = args.act_scale[m];
  float* y = args.y + m * args.y_stride + row;
  float out[16];
  for (int64_t r = 0; r < 16; ++r) {
    out[r] = static_cast<float>(sum[r]) * (act_scale * scale[r]) + bias[r];
  }
  const float* residual =
      args.residual == nullptr ? nullptr : args.residual + m * args.residual_stride + row;
  if (rows == 16) {  // whole vectors
    for (int64_t r = 0; residual != nullptr && r < 16; ++r) out[r] += residual[r];
    if (stream) {
      _mm256_stream_ps(y, _mm256_loadu_ps(out));
      _mm256_stream_ps(y + 8, _mm256_loadu_ps(out + 8));
    } else {
      std::memcpy(y, out, sizeof(out));
    }
  } else {
    for (int64_t r = 0; residual != nullptr && r < rows; ++r) out[r] += residual[r];
    std::memcpy(y, out, static_cast<size_t>(rows) * sizeof(float));
  }
}

// A task of GemmInt. kBlockCols: columns of a block at most, a multiple of 64.
template <typename Tiles, int64_t kBlockCols>
class TileGemm {
 public:
  TileGemm(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
           int64_t row_end)
      : args_(args),
        m_begin_(m_begin),
        tokens_(m_end - m_begin),
        row_begin_(row_begin),
        row_end_(row_end),
        panels_((row_end - row_begin + kVnniPanelRows - 1) / kVnniPanelRows),
        steps_(VnniSteps(args.weights->cols)),
        blocks_((steps_ + kMostSteps - 1) / kMostSteps),
        block_steps_((steps_ + blocks_ - 1) / blocks_) {
    const int64_t token_tiles = (tokens_ + kTileHeight - 1) / kTileHeight;
    const int64_t sum_bytes = token_tiles * 2 * panels_ * kTileSize;
    uint8_t* scratch = GemmIntScratch(static_cast<size_t>(sum_bytes + kWideBytes + kEdgeBytes));
    sums_ = reinterpret_cast<int32_t*>(scratch);
    wide_ = reinterpret_cast<int8_t*>(scratch + sum_bytes);
    edge_ = wide_ + kWideBytes;
  }

  void Run() {
    const int64_t count = blocks_ * panels_;
    // Few tokens: all their columns fit the L2, and blocks follow each other as weights
    // lie in memory, which are read at its speed. Many: a block of columns of all tokens
    // stays in the L2 while all rows pass.
    const bool in_memory_order = tokens_ <= kFewTokens;
    const auto place = [&](int64_t i) {
      return in_memory_order ? Place{i % blocks_, i / blocks_} : Place{i / panels_, i % panels_};
    };
    for (int64_t i = 0; i < count; ++i) RunBlock(place(i), place(std::min(i + 1, count - 1)));
    WriteOutput();
  }

 private:
  static constexpr int64_t kMostSteps = kBlockCols / kVnniStepCols;
  static constexpr int64_t kWideBytes = kMostSteps * kWideStepBytes;
  static constexpr int64_t kBlockTokens = 2 * kTileHeight;
  static constexpr int64_t kEdgeBytes = kBlockTokens * kBlockCols;
  static constexpr int64_t kFewTokens = 64;
  static constexpr int64_t kStreamBytes = int64_t{4} << 20;  // two L2s' worth

  struct Place {
    int64_t block;  // of columns
    int64_t panel;  // of the task's
  };

  int64_t Steps(Place place) const {
    return std::min(block_steps_, steps_ - place.block * block_steps_);
  }

  const uint8_t* Packed(Place place) const {
    const GemmIntWeights& weights = *args_.weights;
    return weights.data.data() +
           (row_begin_ / kVnniPanelRows + place.panel) *
               VnniPanelBytes(weights.bits, weights.cols) +
           place.block * block_steps_ * VnniStepBytes(weights.bits);
  }

  void RunBlock(Place place, Place next) {
    const int bits = args_.weights->bits;
    const int64_t steps = Steps(place);
    const int64_t step_begin = place.block * block_steps_;
    WidenPanel(VnniIsNibble(bits), Packed(place), steps, wide_);
    // Each block of tokens fetches its share of the next block of weights.
    const int64_t lines = Steps(next) * VnniStepBytes(bits) / 64;
    for (int64_t m = 0; m < tokens_; m += kBlockTokens) {
      const int64_t tokens = std::min(kBlockTokens, tokens_ - m);
      const int64_t first_line = lines * m / tokens_;
      TileProduct product = {
          .act = args_.act + (m_begin_ + m) * args_.act_stride + step_begin * kTileBytes,
          .act_stride = args_.act_stride,
          .wide = wide_,
          .steps = steps,
          .sums = SumTile(m / kTileHeight, 2 * place.panel),
          .row_tiles = 2 * panels_,
          .first = place.block == 0,
          .fetch = Packed(next) + first_line * 64,
          .fetch_lines = lines * (m + tokens) / tokens_ - first_line};
      if (tokens % kTileHeight != 0) {
        product.act = PadTokens(product, tokens);
        product.act_stride = kBlockCols;
      }
      if (tokens > kTileHeight) {
        Multiply<Tiles, 2>(tiles_, product);
      } else {
        Multiply<Tiles, 1>(tiles_, product);
      }
    }
  }

  // Copies the last tokens, since a tile reads 16 rows, beside rows of zeros.
  const int8_t* PadTokens(const TileProduct& product, int64_t tokens) {
    const size_t bytes = static_cast<size_t>(product.steps * kTileBytes);
    for (int64_t m = 0; m < kBlockTokens; ++m) {
      int8_t* row = edge_ + m * kBlockCols;
      if (m < tokens) {
        std::memcpy(row, product.act + m * product.act_stride, bytes);
      } else {
        std::memset(row, 0, bytes);
      }
    }
    return edge_;
  }

  // Row by row of y, since scattered lines would each wait for memory. A large y is
  // streamed past the caches, which would lose it anyway, and would first read it.
  void WriteOutput() {
    const int64_t y_bytes =
        args_.tokens * args_.weights->rows * static_cast<int64_t>(sizeof(float));
    const bool aligned = reinterpret_cast<uintptr_t>(args_.y) % 64 == 0 && args_.y_stride % 16 == 0;
    const bool stream = aligned && y_bytes >= kStreamBytes;
    for (int64_t m = 0; m < tokens_; ++m) {
      for (int64_t row = row_begin_; row < row_end_; row += 16) {
        const int32_t* tile = SumTile(m / kTileHeight, (row - row_begin_) / 16);
        WriteRow(args_, tile + m % kTileHeight * 16, m_begin_ + m, row,
                 std::min<int64_t>(16, row_end_ - row), stream);
      }
    }
    if (stream) _mm_sfence();
  }

  int32_t* SumTile(int64_t token_tile, int64_t row_tile) {
    return sums_ + (token_tile * 2 * panels_ + row_tile) *
                       (kTileSize / static_cast<int64_t>(sizeof(int32_t)));
  }

  const GemmIntArgs& args_;
  const int64_t m_begin_;
  const int64_t tokens_;
  const int64_t row_begin_;
  const int64_t row_end_;
  const int64_t panels_;
  const int64_t steps_;  // of 64 columns
  const int64_t blocks_;
  const int64_t block_steps_;  // about the same in each block
  int32_t* sums_;              // tiles [token tile][row tile]
  int8_t* wide_;               // a block's tiles [step][half of the rows]
  int8_t* edge_;               // the last tokens' columns of a block, padded
  Tiles tiles_;
};

}  // namespace
}  // namespace flatquant
