#include "flatquant/kernels/kron_quantize/cuda_dequantize.h"

#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"

namespace flatquant {
namespace {

// A CTA per token.
template <typename T>
__global__ void DequantizeKernel(CudaDequantizeArgs args) {
  const int64_t token = blockIdx.x;
  const int8_t* codes = args.codes + token * args.code_stride;
  const float scale = args.scales[token];
  T* y = static_cast<T*>(args.y) + token * args.width;
  for (int64_t c = threadIdx.x; c < args.width; c += blockDim.x) {
    y[c] = cuda::Element<T>::FromFloat(scale * static_cast<float>(codes[c]));
  }
}

}  // namespace

void CudaDequantize(const CudaDequantizeArgs& args, CudaStream stream) {
  if (args.tokens == 0) return;
  cuda::ForElement(args.dtype, [&](auto element) {
    DequantizeKernel<decltype(element)>
        <<<static_cast<unsigned>(args.tokens), 256, 0, stream>>>(args);
  });
  CheckCudaLaunch("CudaDequantize");
}

}  // namespace flatquant
