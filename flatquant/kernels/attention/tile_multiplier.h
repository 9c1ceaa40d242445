#pragma once

#include <cstdint>

#include "flatquant/kernels/amx_tiles.h"
#include "flatquant/kernels/attention/integer_rows.h"

// Integer attention's Multiplier (integer_rows.h) on a tile unit: a panel of codes is as
// the unit's second operand wants it, and 16 rows of digits are a first operand. A template
// over the unit: the tests run an emulated one.
namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Rows of a block: K and V are staged once for all of them; more would share that
// further, but multiply more above the diagonal.
inline constexpr int64_t kTileBlockRows = 128;

inline int64_t IntegerTileTokenSlice(int64_t group) noexcept {
  return std::max<int64_t>(1, kTileBlockRows / group);
}

template <typename Tiles>
class TileMultiplier {
 public:
  // Two tiles of rows by two panels: four sums, which hide the unit's latency.
  static constexpr int kRows = 32;
  template <int kDigits>
  static constexpr int64_t Lines(int64_t depth, int64_t panels) {
    return depth / 8 * (panels / 2);
  }

  template <bool kIsSigned, int kDigits>
  void Multiply(int64_t rows, int64_t depth, const uint8_t* digits, int64_t stride,
                const uint8_t* codes, int64_t panels, int64_t panel_bytes, int32_t* products,
                int64_t product_stride, const uint8_t* ahead, int64_t step) {
    const bool two_tiles = rows > kTileHeight;
    for (int64_t p = 0; p < panels; p += 2) {
      for (int64_t i = 0; i < depth / 8; ++i, ahead += step) {
        _mm_prefetch(reinterpret_cast<const char*>(ahead), _MM_HINT_T1);
      }
      for (int64_t d = 0; d < kDigits; ++d) {
        const uint8_t* a = digits + d * stride;
        const uint8_t* b = codes + p * panel_bytes;
        int32_t* c = products + d * product_stride + p * 16;
        if (two_tiles) {
          Sum<kIsSigned, 2>(depth, a, kDigits * stride, b, panel_bytes, c,
                            kDigits * product_stride);
        } else {
          Sum<kIsSigned, 1>(depth, a, kDigits * stride, b, panel_bytes, c,
                            kDigits * product_stride);
        }
      }
    }
  }

 private:
  // c [16 kHigh, 32] = a b, strides from row to row.
  template <bool kIsSigned, int kHigh>
  void Sum(int64_t depth, const uint8_t* a, int64_t a_stride, const uint8_t* b, int64_t panel_bytes,
           int32_t* c, int64_t c_stride) {
    tiles_.template Zero<0>();
    tiles_.template Zero<1>();
    if constexpr (kHigh == 2) {
      tiles_.template Zero<2>();
      tiles_.template Zero<3>();
    }
    for (int64_t k = 0; k < depth; k += kTileBytes) {
      tiles_.template Load<6>(b + k * 16, kTileBytes);
      tiles_.template Load<7>(b + panel_bytes + k * 16, kTileBytes);
      tiles_.template Load<4>(a + k, a_stride);
      Dot<kIsSigned, 0, 4, 6>();
      Dot<kIsSigned, 1, 4, 7>();
      if constexpr (kHigh == 2) {
        tiles_.template Load<5>(a + kTileHeight * a_stride + k, a_stride);
        Dot<kIsSigned, 2, 5, 6>();
        Dot<kIsSigned, 3, 5, 7>();
      }
    }
    const int64_t bytes = c_stride * static_cast<int64_t>(sizeof(int32_t));
    tiles_.template Store<0>(c, bytes);
    tiles_.template Store<1>(c + 16, bytes);
    if constexpr (kHigh == 2) {
      tiles_.template Store<2>(c + kTileHeight * c_stride, bytes);
      tiles_.template Store<3>(c + kTileHeight * c_stride + 16, bytes);
    }
  }

  // kIsSigned: b's bytes, a's are then unsigned, and the other way round.
  template <bool kIsSigned, int kC, int kA, int kB>
  void Dot() {
    if constexpr (kIsSigned) {
      tiles_.template DotUint8Int8<kC, kA, kB>();
    } else {
      tiles_.template DotInt8Uint8<kC, kA, kB>();
    }
  }

  Tiles tiles_;
};

}  // namespace
}  // namespace flatquant
