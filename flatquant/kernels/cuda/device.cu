#include <algorithm>
#include <array>
#include <mutex>
#include <string>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"

namespace flatquant {
namespace {

// What a CTA needs, or `bytes` if that is more and it may have them.
size_t AtLeast(const CudaDevice& device, int64_t bytes, size_t needed) {
  const int64_t allowed = std::min<int64_t>(RoundUpTo(bytes, 16), device.cta_shared_bytes);
  return std::max(needed, static_cast<size_t>(allowed));
}

}  // namespace

void CheckCuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw Error("cuda.failed", call,
              std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status),
              status == cudaErrorMemoryAllocation
                  ? "free GPU memory, or use a smaller batch or context"
                  : "check the driver and the GPU's state with nvidia-smi");
}

void CheckCudaLaunch(const char* kernel) { CheckCuda(cudaGetLastError(), kernel); }

CudaDevice CurrentCudaDevice() {
  constexpr size_t kMaxDevices = 64;
  static std::array<CudaDevice, kMaxDevices> devices;
  static std::array<std::once_flag, kMaxDevices> flags;
  int ordinal = 0;
  FLATQUANT_CUDA(cudaGetDevice(&ordinal));
  FLATQUANT_CHECK(ordinal >= 0 && static_cast<size_t>(ordinal) < kMaxDevices);
  const size_t index = static_cast<size_t>(ordinal);
  std::call_once(flags[index], [&] {
    int major = 0;
    int minor = 0;
    FLATQUANT_CUDA(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, ordinal));
    FLATQUANT_CUDA(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, ordinal));
    FLATQUANT_CUDA(
        cudaDeviceGetAttribute(&devices[index].sm_count, cudaDevAttrMultiProcessorCount, ordinal));
    FLATQUANT_CUDA(cudaDeviceGetAttribute(&devices[index].sm_shared_bytes,
                                          cudaDevAttrMaxSharedMemoryPerMultiprocessor, ordinal));
    FLATQUANT_CUDA(cudaDeviceGetAttribute(&devices[index].cta_shared_bytes,
                                          cudaDevAttrMaxSharedMemoryPerBlockOptin, ordinal));
    devices[index].sm_version = 10 * major + minor;
  });
  return devices[index];
}

size_t EvenSharedMemory(int64_t ctas, size_t needed) {
  const CudaDevice device = CurrentCudaDevice();
  const int64_t even = CeilDiv(ctas, device.sm_count);
  // Together with what each CTA costs beside its own, too much for one more.
  return AtLeast(device, device.sm_shared_bytes / (even + 1), needed);
}

size_t AloneSharedMemory(int64_t ctas, size_t needed) {
  if (ctas > kSparePlaces) return needed;
  const CudaDevice device = CurrentCudaDevice();
  return AtLeast(device, int64_t{device.sm_shared_bytes} * 2 / 3, needed);
}

}  // namespace flatquant
