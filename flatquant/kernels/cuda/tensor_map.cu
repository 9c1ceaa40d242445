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

}  // namespace

CUtensorMap MakeTensorMap(const TensorMapMatrix& matrix) {
  const cuuint64_t size[2] = {static_cast<cuuint64_t>(matrix.cols),
                              static_cast<cuuint64_t>(matrix.rows)};
  const cuuint64_t stride[1] = {static_cast<cuuint64_t>(matrix.row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(matrix.box_cols),
                             static_cast<cuuint32_t>(matrix.box_rows)};
  const cuuint32_t element_stride[2] = {1, 1};
  CUtensorMap map;
  const CUresult status =
      Encoder()(&map, matrix.type, 2, const_cast<void*>(matrix.data), size, stride, box,
                element_stride, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  FLATQUANT_CHECK(status == CUDA_SUCCESS);  // sizes and alignment are the caller's to keep
  return map;
}

}  // namespace flatquant::cuda
