// Stands in for cuda/ where CUDA is not built.

#include "flatquant/base/error.h"
#include "flatquant/bench/gpu.h"

namespace flatquant::bench {
namespace {

[[noreturn]] void NotBuilt(const std::string& device) {
  throw Error("cuda.not_built", "--device " + device, "this binary was built without CUDA",
              "build with -DFLATQUANT_CUDA=ON (needs nvcc), or use --device cpu");
}

}  // namespace

void UseGpu(const std::string& device) { NotBuilt(device); }
CudaLimits MeasureGpuLimits() { NotBuilt("cuda"); }
void RunGpuLinears(const ModelConfig&, const Plan&, Run*) { NotBuilt("cuda"); }
void RunGpuAttention(const ModelConfig&, const Plan&, Run*) { NotBuilt("cuda"); }
void RunGpuKernels(const ModelConfig&, const Plan&, Run*) { NotBuilt("cuda"); }

}  // namespace flatquant::bench
