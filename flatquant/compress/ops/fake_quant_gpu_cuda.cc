#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "flatquant/compress/ops/fake_quant_kernels.cuh"

namespace flatquant::compress {

bool HasGpuFakeQuant() { return true; }

void GpuFakeQuant(const FakeQuantRows& rows, int device, void* y) {
  const auto index = static_cast<c10::DeviceIndex>(device);
  const c10::cuda::CUDAGuard guard(index);
  LaunchFakeQuant(rows, y, c10::cuda::getCurrentCUDAStream(index));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

void GpuFakeQuantBackward(const FakeQuantRows& rows, int device, const void* dy, float* dx,
                          float* dmax, float* dmin) {
  const auto index = static_cast<c10::DeviceIndex>(device);
  const c10::cuda::CUDAGuard guard(index);
  LaunchFakeQuantBackward(rows, dy, dx, dmax, dmin, c10::cuda::getCurrentCUDAStream(index));
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace flatquant::compress
