#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/quantize_kv/cuda_kernels.h"

namespace flatquant {
namespace {

// Beyond, throughput counts more than the way of a single vector: 512 tokens of 32 heads take 14 us
// in place of 18, 2048 take 44 in place of 65.
constexpr int64_t kMostStepTokens = 256;

// Fragments of P^T as mma.sync's second operand, which cuda_head_transform.cuh describes.
template <typename T>
__global__ void PackHeadTransformKernel(const float* matrix, int dim, T* packed) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= dim * dim) return;
  const int lane = index / 8 % 32;
  const int block = index / 256;
  const int row = block % (dim / 32) * 32 + index % 8 / 2 * 8 + lane % 4 * 2 + index % 2;
  const int col = block / (dim / 32) * 8 + lane / 4;
  packed[index] = cuda::Element<T>::FromFloat(matrix[row * dim + col]);
}

}  // namespace

void CudaPackHeadTransform(const float* matrix, int64_t head_dim, DType dtype, void* packed,
                           CudaStream stream) {
  cuda::ForElement(dtype, [&](auto element) {
    PackHeadTransformKernel<<<static_cast<unsigned>(CeilDiv(head_dim * head_dim, 256)), 256, 0,
                              stream>>>(matrix, static_cast<int>(head_dim),
                                        static_cast<decltype(element)*>(packed));
  });
  CheckCudaLaunch("CudaPackHeadTransform");
}

void CudaQuantizeKv(const CudaQuantizeKvArgs& args, CudaStream stream) {
  for (const CudaKvPlane* plane : {&args.k, &args.v}) {
    FLATQUANT_CHECK((plane->bits >= 2 && plane->bits <= 4) || plane->bits == 16);
  }
  FLATQUANT_CHECK(args.k.heads == args.v.heads && args.qkv_stride % 8 == 0);
  if (args.tokens == 0) return;
  if (args.tokens > kMostStepTokens && CurrentCudaDevice().sm_version == 90) {
    cuda::QuantizeKvWgmma(args, stream);
  } else {
    cuda::QuantizeKvMma(args, stream);
  }
  CheckCudaLaunch("CudaQuantizeKv");
}

}  // namespace flatquant
