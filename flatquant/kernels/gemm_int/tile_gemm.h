#pragma once

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
// Weights stay 4-bit in memory. A task widens a block of them, `kPanels` panels by
// kBlockCols columns, to int8 tiles once and multiplies it by all its tokens, 16
// kTokenTiles of them at a time. The sums of a block of columns wait in scratch
// memory for the next block's.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

template <int kTokenTilesValue, int kPanelsValue, int kBlockColsValue, bool kPrefetchActValue>
struct TileBlocking {
  static constexpr int kTokenTiles = kTokenTilesValue;
  static constexpr int kPanels = kPanelsValue;  // per block
  static constexpr int64_t kBlockCols = kBlockColsValue;
  static constexpr bool kPrefetchAct = kPrefetchActValue;
};

// Two tiles, the halves of a panel's rows, of one step of 64 columns.
constexpr int64_t kWideStepBytes = 2 * kTileSize;

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
        packed += 64;
      }
    }
    wide += kWideStepBytes;
  }
}

// One product: tokens x rows x columns of a block.
struct TileProduct {
  const int8_t* act;  // first token, first column
  int64_t act_stride;
  const int8_t* wide;   // first panel's tiles
  int64_t panel_bytes;  // from a panel's tiles to the next one's
  int64_t steps;
  int32_t* sums;  // tiles [token tile][row tile], row_tiles of them in a row of tiles
  int64_t row_tiles;
  bool first;               // nothing was summed before
  const uint8_t* prefetch;  // the packed bytes of the next block's first panel
  int64_t prefetch_step;    // bytes of each of its panels to fetch per step
  int64_t prefetch_panel;   // from a panel to the next one
};

template <typename Tiles, int kTokenTiles, int kRowTiles, bool kPrefetchAct>
void Multiply(Tiles& tiles, TileProduct p) {
  constexpr int kA = kTokenTiles * kRowTiles;
  constexpr int kB = kA + kTokenTiles;
  constexpr int kBs = std::min(kRowTiles, 8 - kB);  // B tiles take turns if registers lack
  static_assert(kBs > 0);
  const auto for_each = []<int... i>(std::integer_sequence<int, i...>, const auto& f) {
    (f(std::integral_constant<int, i>()), ...);
  };
  constexpr std::make_integer_sequence<int, kTokenTiles> kTokens;
  constexpr std::make_integer_sequence<int, kRowTiles> kRows;
  constexpr int64_t kSumsPerTile = kTileSize / 4;
  for_each(kTokens, [&](auto i) {
    for_each(kRows, [&](auto j) {
      if (p.first) {
        tiles.template Zero<i * kRowTiles + j>();
      } else {
        tiles.template Load<i * kRowTiles + j>(p.sums + (i * p.row_tiles + j) * kSumsPerTile,
                                               kTileBytes);
      }
    });
  });
  for (int64_t step = 0; step < p.steps; ++step) {
    const int8_t* act = p.act + step * kTileBytes;
    const int8_t* wide = p.wide + step * kWideStepBytes;
    for_each(kRows, [&](auto j) {
      tiles.template Load<kB + j % kBs>(wide + j / 2 * p.panel_bytes + j % 2 * kTileSize,
                                        kTileBytes);
      for_each(kTokens, [&](auto i) {
        if constexpr (j == 0) {
          tiles.template Load<kA + i>(act + i * kTileHeight * p.act_stride, p.act_stride);
        }
        tiles.template DotInt8<i * kRowTiles + j, kA + i, kB + j % kBs>();
      });
    });
    if constexpr (kPrefetchAct) {
      // The next tokens, in the same columns.
      const int8_t* next = act + kTokenTiles * kTileHeight * p.act_stride;
      for (int64_t m = 0; m < kTokenTiles * kTileHeight; ++m) {
        __builtin_prefetch(next + m * p.act_stride, 0, 3);
      }
    }
    for (int64_t byte = 0; byte < p.prefetch_step; byte += 64) {
      const uint8_t* line = p.prefetch + step * p.prefetch_step + byte;
      for (int panel = 0; panel < kRowTiles / 2; ++panel) {
        __builtin_prefetch(line + panel * p.prefetch_panel, 0, 2);
      }
    }
  }
  for_each(kTokens, [&](auto i) {
    for_each(kRows, [&](auto j) {
      tiles.template Store<i * kRowTiles + j>(p.sums + (i * p.row_tiles + j) * kSumsPerTile,
                                              kTileBytes);
    });
  });
}

// y of 16 tokens x 16 rows from their sums; fewer where the output ends.
inline void WriteTile(const GemmIntArgs& args, const int32_t* sums, int64_t m, int64_t tokens,
                      int64_t row, int64_t rows) {
  const float* scale = args.weights->scale.data() + row;
  const float* bias = args.weights->bias.data() + row;
  for (int64_t i = 0; i < tokens; ++i) {
    const float act_scale = args.act_scale[m + i];
    const int32_t* sum = sums + i * 16;
    float* y = args.y + (m + i) * args.y_stride + row;
    float out[16];
    for (int64_t r = 0; r < 16; ++r) {
      out[r] = static_cast<float>(sum[r]) * (act_scale * scale[r]) + bias[r];
    }
    if (args.residual != nullptr) {
      const float* residual = args.residual + (m + i) * args.residual_stride + row;
      for (int64_t r = 0; r < rows; ++r) out[r] += residual[r];
    }
    std::memcpy(y, out, static_cast<size_t>(rows) * sizeof(float));
  }
}

// A task of GemmInt.
template <typename Tiles, typename Blocking>
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
        steps_(VnniSteps(args.weights->cols)) {
    const int64_t token_tiles = (tokens_ + kTileHeight - 1) / kTileHeight;
    const int64_t sum_bytes = token_tiles * 2 * panels_ * kTileSize;
    const int64_t wide_bytes = Blocking::kPanels * kWidePanelBytes;
    uint8_t* scratch = GemmIntScratch(static_cast<size_t>(sum_bytes + wide_bytes + kEdgeBytes));
    sums_ = reinterpret_cast<int32_t*>(scratch);
    wide_ = reinterpret_cast<int8_t*>(scratch + sum_bytes);
    edge_ = wide_ + wide_bytes;
  }

  void Run() {
    const int64_t blocks = (steps_ + kBlockSteps - 1) / kBlockSteps;
    const int64_t groups = (panels_ + Blocking::kPanels - 1) / Blocking::kPanels;
    // Few tokens: all their columns fit the L2, and weights come in the order in
    // which they lie in memory. Many: a block of columns of all tokens stays in the
    // L2 while all rows pass.
    const bool rows_outside = tokens_ <= kFewTokens;
    for (int64_t i = 0; i < blocks * groups; ++i) {
      const auto [block, group] = Place(i, rows_outside, blocks, groups);
      next_ = Place(i + 1, rows_outside, blocks, groups);
      has_next_ = i + 1 < blocks * groups;
      RunBlock(block * kBlockSteps, group * Blocking::kPanels);
    }
  }

 private:
  static constexpr int64_t kBlockSteps = Blocking::kBlockCols / kVnniStepCols;
  static constexpr int64_t kWidePanelBytes = kBlockSteps * kWideStepBytes;
  static constexpr int64_t kBlockTokens = Blocking::kTokenTiles * kTileHeight;
  static constexpr int64_t kEdgeBytes = kBlockTokens * Blocking::kBlockCols;
  static constexpr int64_t kFewTokens = 64;

  struct BlockAndGroup {
    int64_t block;
    int64_t group;
  };

  static BlockAndGroup Place(int64_t i, bool rows_outside, int64_t blocks, int64_t groups) {
    if (rows_outside) return {i % blocks, i / blocks};
    return {i / groups, i % groups};
  }

  const uint8_t* Packed(int64_t step, int64_t panel) const {
    const GemmIntWeights& weights = *args_.weights;
    return weights.data.data() +
           (row_begin_ / kVnniPanelRows + panel) * VnniPanelBytes(weights.bits, weights.cols) +
           step * VnniStepBytes(weights.bits);
  }

  // Columns from step `step_begin` on, rows from panel `panel` of the task on.
  void RunBlock(int64_t step_begin, int64_t panel) {
    const int64_t steps = std::min(kBlockSteps, steps_ - step_begin);
    const int64_t panels = std::min<int64_t>(Blocking::kPanels, panels_ - panel);
    for (int64_t p = 0; p < panels; ++p) {
      WidenPanel(VnniIsNibble(args_.weights->bits), Packed(step_begin, panel + p), steps,
                 wide_ + p * kWidePanelBytes);
    }
    const bool last = step_begin + steps == steps_;
    for (int64_t m = 0; m < tokens_; m += kBlockTokens) {
      const int64_t tokens = std::min(kBlockTokens, tokens_ - m);
      TileProduct product = {
          args_.act + (m_begin_ + m) * args_.act_stride + step_begin * kTileBytes,
          args_.act_stride,
          wide_,
          kWidePanelBytes,
          steps,
          SumTile(m / kTileHeight, 2 * panel),
          2 * panels_,
          step_begin == 0,
          nullptr,
          0,
          0};
      if (tokens % kTileHeight != 0) product.act = PadTokens(product, tokens);
      if (product.act == edge_) product.act_stride = Blocking::kBlockCols;
      if (m == 0 && has_next_) {
        product.prefetch = Packed(next_.block * kBlockSteps, next_.group * Blocking::kPanels);
        product.prefetch_step = VnniStepBytes(args_.weights->bits);
        product.prefetch_panel = VnniPanelBytes(args_.weights->bits, args_.weights->cols);
      }
      MultiplyTokens(product, tokens, panels);
      if (last) WriteTokens(m, tokens, panel, panels);
    }
  }

  // Copies the last tokens, since a tile reads 16 rows, beside rows of zeros.
  const int8_t* PadTokens(const TileProduct& product, int64_t tokens) {
    const int64_t bytes = product.steps * kTileBytes;
    for (int64_t m = 0; m < kBlockTokens; ++m) {
      int8_t* row = edge_ + m * Blocking::kBlockCols;
      if (m < tokens) {
        std::memcpy(row, product.act + m * product.act_stride, static_cast<size_t>(bytes));
      } else {
        std::memset(row, 0, static_cast<size_t>(bytes));
      }
    }
    return edge_;
  }

  void MultiplyTokens(const TileProduct& product, int64_t tokens, int64_t panels) {
    constexpr int kRowTiles = 2 * Blocking::kPanels;
    constexpr bool kPrefetchAct = Blocking::kPrefetchAct;
    const bool all_tokens = tokens > kBlockTokens - kTileHeight;
    if (all_tokens && panels == Blocking::kPanels) {
      Multiply<Tiles, Blocking::kTokenTiles, kRowTiles, kPrefetchAct>(tiles_, product);
    } else if (all_tokens) {
      Multiply<Tiles, Blocking::kTokenTiles, 2, kPrefetchAct>(tiles_, product);
    } else {
      Multiply<Tiles, 1, 2, false>(tiles_, product);
    }
  }

  void WriteTokens(int64_t m, int64_t tokens, int64_t panel, int64_t panels) {
    for (int64_t i = 0; i < tokens; i += kTileHeight) {
      for (int64_t tile = 2 * panel; tile < 2 * (panel + panels); ++tile) {
        const int64_t row = row_begin_ + tile * 16;
        const int64_t rows = std::min<int64_t>(16, row_end_ - row);
        if (rows <= 0) break;
        WriteTile(args_, SumTile((m + i) / kTileHeight, tile), m_begin_ + m + i,
                  std::min(kTileHeight, tokens - i), row, rows);
      }
    }
  }

  int32_t* SumTile(int64_t token_tile, int64_t row_tile) {
    return sums_ + (token_tile * 2 * panels_ + row_tile) * (kTileSize / 4);
  }

  const GemmIntArgs& args_;
  const int64_t m_begin_;
  const int64_t tokens_;
  const int64_t row_begin_;
  const int64_t row_end_;
  const int64_t panels_;
  const int64_t steps_;
  int32_t* sums_;  // tiles [token tile][row tile]
  int8_t* wide_;   // a block's tiles [panel][step][half]
  int8_t* edge_;   // the last tokens' columns of a block, padded
  BlockAndGroup next_ = {};
  bool has_next_ = false;
  Tiles tiles_;
};

}  // namespace
}  // namespace flatquant
