#pragma once

#include <cstdint>

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Eight floats as GCC's and Clang's vector extension; one register from AVX on.
typedef float Float8 __attribute__((vector_size(32)));
typedef float Float8Unaligned __attribute__((vector_size(32), aligned(4)));

// Columns that a tile of C has; B and C rows are padded to a multiple of it.
inline constexpr int64_t kTileCols = 16;
// 6 rows x 16 columns are 12 of the 16 vector registers that AVX2 has; two more
// hold B, one the broadcast element of A.
inline constexpr int64_t kTileRows = 6;

constexpr int64_t PadToTile(int64_t n) { return (n + kTileCols - 1) / kTileCols * kTileCols; }

// A read through strides: element (i, k) is data[i * row + k * depth].
struct StridedMatrix {
  const float* data;
  int64_t row;
  int64_t depth;
};

template <int kRows>
inline void MultiplyTile(StridedMatrix a, int64_t depth, const float* b, int64_t b_stride, float* c,
                         int64_t c_stride, bool accumulate) {
  Float8 sum[kRows][2];
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) {
      sum[i][j] = accumulate
                      ? Float8(*reinterpret_cast<const Float8Unaligned*>(c + i * c_stride + j * 8))
                      : Float8{};
    }
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Float8 b0 = *reinterpret_cast<const Float8Unaligned*>(b + k * b_stride);
    const Float8 b1 = *reinterpret_cast<const Float8Unaligned*>(b + k * b_stride + 8);
    const float* a_k = a.data + k * a.depth;
    for (int i = 0; i < kRows; ++i) {
      const float element = a_k[i * a.row];
      sum[i][0] += element * b0;
      sum[i][1] += element * b1;
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < 2; ++j) {
      *reinterpret_cast<Float8Unaligned*>(c + i * c_stride + j * 8) = sum[i][j];
    }
  }
}

// C [rows, cols] = (accumulate ? C : 0) + A [rows, depth] B [depth, cols], with
// cols a multiple of kTileCols, for matrices that fit in the L2 cache. Elements
// are summed in the order of depth, whatever the other sizes are.
inline void MultiplySmall(int64_t rows, int64_t cols, int64_t depth, StridedMatrix a,
                          const float* b, int64_t b_stride, float* c, int64_t c_stride,
                          bool accumulate) {
  for (int64_t j = 0; j < cols; j += kTileCols) {
    int64_t i = 0;
    for (; i + kTileRows <= rows; i += kTileRows) {
      const StridedMatrix part = {a.data + i * a.row, a.row, a.depth};
      MultiplyTile<kTileRows>(part, depth, b + j, b_stride, c + i * c_stride + j, c_stride,
                              accumulate);
    }
    const StridedMatrix part = {a.data + i * a.row, a.row, a.depth};
    float* rest = c + i * c_stride + j;
    switch (rows - i) {
      case 5:
        MultiplyTile<5>(part, depth, b + j, b_stride, rest, c_stride, accumulate);
        break;
      case 4:
        MultiplyTile<4>(part, depth, b + j, b_stride, rest, c_stride, accumulate);
        break;
      case 3:
        MultiplyTile<3>(part, depth, b + j, b_stride, rest, c_stride, accumulate);
        break;
      case 2:
        MultiplyTile<2>(part, depth, b + j, b_stride, rest, c_stride, accumulate);
        break;
      case 1:
        MultiplyTile<1>(part, depth, b + j, b_stride, rest, c_stride, accumulate);
        break;
      default:
        break;
    }
  }
}

}  // namespace
}  // namespace flatquant
