#pragma once

#include <cstdint>

#include "flatquant/kernels/float_lanes.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Eight floats as GCC's and Clang's vector extension; one register from AVX on.
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float8Unaligned __attribute__((vector_size(32), aligned(4)));

// B and C rows are padded to a multiple of this many columns.
inline constexpr int64_t kTileCols = 16;

constexpr int64_t PadToTile(int64_t n) { return (n + kTileCols - 1) / kTileCols * kTileCols; }

// Registers that a tile of C is wide, and its rows. AVX-512 has 32 registers: 6 x 4
// sums, 4 of B and the broadcast element of A make 29; where C is narrower, 8 rows
// keep both multipliers busy (4 cycles of latency, 2 units) and still need no more
// than 8 pointers into A. AVX2 has 16: 6 x 2 sums, 2 of B and the element make 15.
inline constexpr int64_t kTileVectors = kLanes == 16 ? 4 : 2;
constexpr int64_t TileRows(int64_t vectors) { return kLanes == 16 ? (vectors == 4 ? 6 : 8) : 6; }

// A read through strides: element (i, k) is data[i * row + k * depth].
struct StridedMatrix {
  const float* data;
  int64_t row;
  int64_t depth;
};

template <int kRows, int kVectors>
inline void MultiplyTile(StridedMatrix a, int64_t depth, const float* b, int64_t b_stride, float* c,
                         int64_t c_stride, bool accumulate) {
  Lanes sum[kRows][kVectors];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      sum[i][j] = accumulate ? LoadLanes(c + i * c_stride + j * kLanes) : SetLanes(0);
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    Lanes b_k[kVectors];
    for (int j = 0; j < kVectors; ++j) b_k[j] = LoadLanes(b + k * b_stride + j * kLanes);
    const float* a_k = a.data + k * a.depth;
    for (int i = 0; i < kRows; ++i) {
      const Lanes element = SetLanes(a_k[i * a.row]);
      for (int j = 0; j < kVectors; ++j) sum[i][j] = MulAdd(element, b_k[j], sum[i][j]);
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kVectors; ++j) StoreLanes(c + i * c_stride + j * kLanes, sum[i][j]);
  }
}

// MultiplyTile with `rows` <= kRows rows.
template <int kRows, int kVectors>
inline void MultiplyRows(int64_t rows, StridedMatrix a, int64_t depth, const float* b,
                         int64_t b_stride, float* c, int64_t c_stride, bool accumulate) {
  if constexpr (kRows > 0) {
    if (rows == kRows) {
      MultiplyTile<kRows, kVectors>(a, depth, b, b_stride, c, c_stride, accumulate);
    } else {
      MultiplyRows<kRows - 1, kVectors>(rows, a, depth, b, b_stride, c, c_stride, accumulate);
    }
  }
}

// A panel of C, kVectors registers wide, in tiles of nearly equal height: a tile of
// one or two rows would wait for its own sums.
template <int kVectors>
inline void MultiplyPanel(int64_t rows, StridedMatrix a, int64_t depth, const float* b,
                          int64_t b_stride, float* c, int64_t c_stride, bool accumulate) {
  constexpr int kRows = static_cast<int>(TileRows(kVectors));
  for (int64_t tiles = (rows + kRows - 1) / kRows; tiles > 0; --tiles) {
    const int64_t height = (rows + tiles - 1) / tiles;
    MultiplyRows<kRows, kVectors>(height, a, depth, b, b_stride, c, c_stride, accumulate);
    rows -= height;
    a.data += height * a.row;
    c += height * c_stride;
  }
}

// C [rows, cols] = (accumulate ? C : 0) + A [rows, depth] B [depth, cols], with
// cols a multiple of kTileCols, for matrices that fit in the L2 cache. Elements
// are summed in the order of depth, whatever the other sizes are.
inline void MultiplySmall(int64_t rows, int64_t cols, int64_t depth, StridedMatrix a,
                          const float* b, int64_t b_stride, float* c, int64_t c_stride,
                          bool accumulate) {
  int64_t vectors = cols / kLanes;
  for (int64_t panels = (vectors + kTileVectors - 1) / kTileVectors; panels > 0; --panels) {
    const int64_t width = (vectors + panels - 1) / panels;
    if constexpr (kTileVectors == 4) {
      if (width == 4) MultiplyPanel<4>(rows, a, depth, b, b_stride, c, c_stride, accumulate);
      if (width == 3) MultiplyPanel<3>(rows, a, depth, b, b_stride, c, c_stride, accumulate);
    }
    if (width == 2) MultiplyPanel<2>(rows, a, depth, b, b_stride, c, c_stride, accumulate);
    if (width == 1) MultiplyPanel<1>(rows, a, depth, b, b_stride, c, c_stride, accumulate);
    vectors -= width;
    b += width * kLanes;
    c += width * kLanes;
  }
}

}  // namespace
}  // namespace flatquant
