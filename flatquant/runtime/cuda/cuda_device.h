#pragma once

#include <string>

namespace flatquant {

// GPUs that CUDA can use; 0 also without a driver.
int CudaDeviceCount();

// The ordinal of "cuda" or "cuda:N". Errors: cuda.no_device.
int ParseCudaDevice(const std::string& name);

// Makes it the calling thread's current device. Errors: cuda.failed.
void UseCudaDevice(int ordinal);

}  // namespace flatquant
