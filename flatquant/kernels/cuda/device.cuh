#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <cstdint>

namespace flatquant {

// Throws Error "cuda.failed" naming the call when a runtime call failed.
void CheckCuda(cudaError_t status, const char* call);
#define FLATQUANT_CUDA(call) ::flatquant::CheckCuda((call), #call)

// Checks the launch that went before.
void CheckCudaLaunch(const char* kernel);

// What launches need to know of the current device; read once per device.
struct CudaDevice {
  int sm_version = 0;  // 90 for compute capability 9.0
  int sm_count = 0;
  int sm_shared_bytes = 0;   // of a multiprocessor
  int cta_shared_bytes = 0;  // that a CTA may have, at most
};
CudaDevice CurrentCudaDevice();

// Shared memory for each of `ctas` CTAs that need this much: so much more that no multiprocessor
// takes more of them than an even division asks for. CTAs that are let start early would otherwise
// crowd where the kernel before has left room first.
size_t EvenSharedMemory(int64_t ctas, size_t needed);

// Places for CTAs that a decode step's linear leaves free: for the small kernel before it, which is
// still running when the linear's CTAs start.
inline constexpr int64_t kSparePlaces = 4;

// Shared memory for each of `ctas` CTAs of such a small kernel: where the spare places suffice, so
// much that no CTA of a linear, which has a third of a multiprocessor's or more, runs beside one.
// Its first weights would take up the multiprocessor's way to memory for some microseconds. Steps
// of one and of four tokens were 3% faster (LLaMA-2-7B's shape on an H200).
size_t AloneSharedMemory(int64_t ctas, size_t needed);

// Lets a kernel use more than 48 KB of dynamic shared memory, and asks the driver to
// give shared memory all it can: by itself it may leave room for a single CTA. Cheap,
// idempotent, allowed while a stream is being captured.
template <typename Kernel>
void AllowSharedMemory(Kernel* kernel, size_t bytes) {
  FLATQUANT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                      static_cast<int>(bytes)));
  FLATQUANT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
}

constexpr int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t RoundUpTo(int64_t a, int64_t b) { return CeilDiv(a, b) * b; }

}  // namespace flatquant
