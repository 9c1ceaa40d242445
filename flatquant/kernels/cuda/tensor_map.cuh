#pragma once

#include <cuda.h>

#include <cstdint>

namespace flatquant::cuda {

// A tensor of up to four dimensions as the copy engine sees it, innermost dimension first. A
// box's innermost dimension is 128 or 64 bytes, which is also the swizzle with which it lies in
// shared memory. Elements outside the tensor read as zero and are not written.
struct TensorMapTensor {
  const void* data = nullptr;  // 16-byte aligned
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  int rank = 0;
  int64_t size[4] = {};          // elements
  int64_t stride_bytes[4] = {};  // of the dimensions but the innermost, multiples of 16
  int box[4] = {};               // elements, at most 256
};

// Host work only, no device call: about a microsecond.
CUtensorMap MakeTensorMapOf(const TensorMapTensor& tensor);

// A row-major matrix; box_cols elements are 128 bytes.
struct TensorMapMatrix {
  const void* data = nullptr;  // 16-byte aligned
  CUtensorMapDataType type = CU_TENSOR_MAP_DATA_TYPE_UINT8;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t row_bytes = 0;  // from row to row, a multiple of 16
  int box_rows = 0;       // at most 256
  int box_cols = 0;
};

CUtensorMap MakeTensorMap(const TensorMapMatrix& matrix);

}  // namespace flatquant::cuda
