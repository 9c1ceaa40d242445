#pragma once

#include <cuda_runtime_api.h>

#include "flatquant/compress/ops/fake_quant_gpu.h"

namespace flatquant::compress {

// As GpuFakeQuant and GpuFakeQuantBackward, on a stream. Errors show in cudaGetLastError.
void LaunchFakeQuant(const FakeQuantRows& rows, void* y, cudaStream_t stream);
void LaunchFakeQuantBackward(const FakeQuantRows& rows, const void* dy, float* dx, float* dmax,
                             float* dmin, cudaStream_t stream);

}  // namespace flatquant::compress
