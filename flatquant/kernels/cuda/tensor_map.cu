#include "flatquant/kernels/cuda/tensor_map.cuh"

#include <cudaTypedefs.h>
#include <cuda_runtime.h>

#include <string>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"

namespace flatquant::cuda {
namespace {

// Asked of the runtime, so that programs need not link the driver's library, which
// machines without a GPU lack.
PFN_cuTensorMapEncodeTiled_v12000 Encoder() {
  static const PFN_cuTensorMapEncodeTiled_v12000 encoder = [] {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found;
    FLATQUANT_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                    cudaEnableDefault, &found));
    if (found != cudaDriverEntryPointSuccess) {
      throw Error("cuda.old_driver", "cuTensorMapEncodeTiled", "the driver does not have it",
                  "install a driver for CUDA 12 or newer");
    }
    return reinterpret_cast<PFN_cuTensorMapEncodeTiled_v12000>(function);
  }();
  return encoder;
}

int ElementBytes(CUtensorMapDataType type) {
  switch (type) {
    case CU_TENSOR_MAP_DATA_TYPE_UINT8:
      return 1;
    case CU_TENSOR_MAP_DATA_TYPE_UINT16:
    case CU_TENSOR_MAP_DATA_TYPE_FLOAT16:
    case CU_TENSOR_MAP_DATA_TYPE_BFLOAT16:
      return 2;
    default:
      return 4;
  }
}

}  // namespace

CUtensorMap MakeTensorMapOf(const TensorMapTensor& tensor) {
  cuuint64_t size[4], stride[4];
  cuuint32_t box[4];
  const cuuint32_t element_stride[4] = {1, 1, 1, 1};
  for (int i = 0; i < tensor.rank; ++i) {
    size[i] = static_cast<cuuint64_t>(tensor.size[i]);
    stride[i] = static_cast<cuuint64_t>(tensor.stride_bytes[i]);
    box[i] = static_cast<cuuint32_t>(tensor.box[i]);
  }
  const int row_bytes = tensor.box[0] * ElementBytes(tensor.type);
  FLATQUANT_CHECK(row_bytes == 128 || row_bytes == 64);
  CUtensorMap map;
  const CUresult status = Encoder()(
      &map, tensor.type, static_cast<cuuint32_t>(tensor.rank), const_cast<void*>(tensor.data), size,
      stride + 1, box, element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE,
      row_bytes == 128 ? CU_TENSOR_MAP_SWIZZLE_128B : CU_TENSOR_MAP_SWIZZLE_64B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FLATQUANT_CHECK(status == CUDA_SUCCESS);  // sizes and alignment are the caller's to keep
  return map;
}

CUtensorMap MakeTensorMap(const TensorMapMatrix& matrix) {
  return MakeTensorMapOf({matrix.data,
                          matrix.type,
                          2,
                          {matrix.cols, matrix.rows},
                          {0, matrix.row_bytes},
                          {matrix.box_cols, matrix.box_rows}});
}

}  // namespace flatquant::cuda
