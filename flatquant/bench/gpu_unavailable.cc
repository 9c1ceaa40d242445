// Stands in for cuda/ where CUDA is not built.

#include "flatquant/base/error.h"
#include "flatquant/bench/gpu.h"

namespace flatquant::bench {

CudaLimits MeasureGpuLimits() {
  throw Error("cuda.not_built", "bench", "this binary was built without CUDA",
              "build with -DFLATQUANT_CUDA=ON (needs nvcc)");
}

}  // namespace flatquant::bench
