#pragma once

#include <cstdint>

namespace flatquant::cuda {

// Vectors of kDim 16-bit elements as rows in shared memory that ldmatrix reads without
// bank conflicts: the 16-byte chunk c of row r stands at chunk c ^ (r % 8). In memory that
// is aligned to a row (256 bytes suffice) chunk numbers are bits of the address: from a
// chunk of a row, another is an exclusive or away.
template <int kDim>
__device__ inline uint32_t ChunkOffset(int row, int chunk) {
  return row * (kDim * 2) + ((chunk ^ (row % 8)) << 4);
}

// What a lane passes to LoadMatrix, or LoadMatrixTransposed, for a 16 x 16 block of such
// rows. The four matrices come by columns (rows [0, 8) and [8, 16) of the first eight
// elements, then of the others) or by rows. Untransposed, by columns is a first operand
// of a product, rows its rows, and by rows are two second operands; transposed, the
// other way round, rows along the depth.
template <int kDim>
__device__ inline uint32_t ByColumns(int lane) {
  return ChunkOffset<kDim>(lane / 8 % 2 * 8 + lane % 8, lane / 16);
}
template <int kDim>
__device__ inline uint32_t ByRows(int lane) {
  return ChunkOffset<kDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}

}  // namespace flatquant::cuda
