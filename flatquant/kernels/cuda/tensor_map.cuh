#pragma once

#include <cuda.h>

#include <cstdint>

namespace flatquant::cuda {

// A row-major matrix as the copy engine sees it: boxes of box_rows x box_cols, laid
// out in shared memory with the 128-byte swizzle (box_cols elements are 128 bytes).
// Elements outside the matrix read as zero and are not written.
struct TensorMapMatrix {
  const void* data = nullptr;  // 16-byte aligned
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_bytes = 0;  // from row to row, a multiple of 16
  int box_rows = 0;       // at most 256
  int box_cols = 0;
};

// Host work only, no device call: about a microsecond.
CUtensorMap MakeTensorMap(const TensorMapMatrix& matrix);

}  // namespace flatquant::cuda
