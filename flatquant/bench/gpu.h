#pragma once

#include "flatquant/kernels/limits/cuda_limits.h"

namespace flatquant::bench {

// MeasureCudaLimits of the GPU that an engine of this process runs on. Errors:
// cuda.not_built where there can be none, cuda.failed.
CudaLimits MeasureGpuLimits();

}  // namespace flatquant::bench
