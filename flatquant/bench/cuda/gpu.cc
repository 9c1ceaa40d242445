#include "flatquant/bench/gpu.h"

namespace flatquant::bench {

CudaLimits MeasureGpuLimits() { return MeasureCudaLimits(); }

}  // namespace flatquant::bench
