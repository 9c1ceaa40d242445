#include "flatquant/base/error.h"
#include "flatquant/compress/ops/fake_quant_gpu.h"

// Stands in for fake_quant_gpu_cuda.cc where LibTorch or this build has no CUDA.
namespace flatquant::compress {

bool HasGpuFakeQuant() { return false; }

void GpuFakeQuant(const FakeQuantRows&, int, void*) { FLATQUANT_CHECK(false); }

void GpuFakeQuantBackward(const FakeQuantRows&, int, const void*, float*, float*, float*) {
  FLATQUANT_CHECK(false);
}

}  // namespace flatquant::compress
