#include "flatquant/bench/gpu.h"
#include "flatquant/runtime/cuda/cuda_device.h"

namespace flatquant::bench {

void UseGpu(const std::string& device) { UseCudaDevice(ParseCudaDevice(device)); }

CudaLimits MeasureGpuLimits() { return MeasureCudaLimits(); }

}  // namespace flatquant::bench
