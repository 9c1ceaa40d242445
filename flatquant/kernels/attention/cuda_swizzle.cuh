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

// What a lane passes to LoadMatrix for elements [0, 16) of rows [0, 16) as second operands
// of two products, and to LoadMatrixTransposed for rows as the depth of two products.
template <int kDim>
__device__ inline uint32_t KeyOffset(int lane) {
  return ChunkOffset<kDim>(lane / 16 * 8 + lane % 8, lane / 8 % 2);
}
template <int kDim>
__device__ inline uint32_t ValueOffset(int lane) {
  return ChunkOffset<kDim>(lane / 8 % 2 * 8 + lane % 8, lane / 16);
}

}  // namespace flatquant::cuda
