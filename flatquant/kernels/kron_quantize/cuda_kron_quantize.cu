#include "flatquant/kernels/kron_quantize/cuda_kron_quantize.h"

#include <string>
#include <utility>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"

namespace flatquant {
namespace {

// to[j][i] = from[i][j] in zero-padded rows of `stride`.
template <typename T>
__global__ void PackTransposed(const float* from, int size, int stride, T* to) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= stride * stride) return;
  const int j = index / stride;
  const int i = index % stride;
  float value = 0;
  if (i < size && j < size) value = from == nullptr ? float(i == j) : from[i * size + j];
  to[index] = cuda::Element<T>::FromFloat(value);
}

}  // namespace

namespace cuda {

void CheckKronShared(int64_t bytes, int64_t width) {
  int device = 0;
  int limit = 0;
  FLATQUANT_CUDA(cudaGetDevice(&device));
  FLATQUANT_CUDA(cudaDeviceGetAttribute(&limit, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  if (bytes <= limit - 1024) return;
  throw Error("cuda.unsupported_width", "kron_quantize",
              "a token of " + std::to_string(width) + " elements needs " + std::to_string(bytes) +
                  " bytes of shared memory, the GPU has " + std::to_string(limit),
              "run this model on the CPU");
}

}  // namespace cuda

void CudaPackKron(int64_t left_size, const float* left, int64_t right_size, const float* right,
                  DType dtype, void* packed, CudaStream stream) {
  cuda::ForElement(dtype, [&](auto element) {
    using T = decltype(element);
    T* to = static_cast<T*>(packed);
    for (const auto& [size, from] : {std::pair(left_size, left), std::pair(right_size, right)}) {
      const int64_t stride = RoundUpTo(size, 16);
      PackTransposed<<<static_cast<unsigned>(CeilDiv(stride * stride, 256)), 256, 0, stream>>>(
          from, static_cast<int>(size), static_cast<int>(stride), to);
      to += stride * stride;
    }
  });
  CheckCudaLaunch("CudaPackKron");
}

void CudaKronQuantize(const CudaKronQuantizeArgs& args, CudaStream stream) {
  const CudaKronTransform& transform = args.transform;
  FLATQUANT_CHECK(transform.left_size == 0 ||
                  transform.left_size * transform.right_size == args.width);
  FLATQUANT_CHECK(args.bits == 16 || (args.code_stride >= args.width && args.bits >= 2 &&
                                      args.bits <= 8 && args.clip_count <= kCudaMaxClips));
  if (args.tokens == 0) return;
  const bool hopper = CurrentCudaDevice().sm_version == 90 && args.x_stride % 8 == 0;
  if (transform.left_size == 0) {
    cuda::QuantizeRows(args, stream);
  } else if (hopper && cuda::KronQuantizeWgmmaSupports(transform)) {
    cuda::KronQuantizeWgmma(args, stream);
  } else if (hopper && cuda::KronQuantizeWideSupports(transform)) {
    cuda::KronQuantizeWide(args, stream);
  } else {
    cuda::KronQuantizeMma(args, stream);
  }
}

}  // namespace flatquant
