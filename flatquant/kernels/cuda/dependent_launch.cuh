#pragma once

#include <cuda_runtime.h>

#include <cstddef>
#include <utility>

#include "flatquant/kernels/cuda/device.cuh"

// Kernels that start before their predecessor on the stream has ended (programmatic
// dependent launch, from sm_90). A decode step is a chain of kernels of some microseconds
// each; started early, a kernel's CTAs are in place, and its first weights on their way,
// when their turn comes.
//
// The rules for a kernel that is launched by LaunchDependent:
//  1. Every thread calls WaitForPredecessor() before it writes global memory and before it
//     reads any that a kernel of the same chain may have written. Before that it may read
//     only what was complete when the chain began: weights, a step's positions and slots,
//     the cache without its newest positions.
//  2. It may call LetSuccessorStart() at any time, best at once. Its successor's CTAs start
//     when all of its own have called it, so they never take a place that one of these needs.
//
// Why this suffices. The wait returns when the predecessor has completed, all its threads
// have ended and their writes are visible. By rule 1 the predecessor has itself waited for
// its predecessor, and so on: when kernel n passes its wait, kernels 0..n-1 have completed,
// as without early starts, and what n does afterwards is ordered after all that they read
// and wrote. What happens before the wait reads memory that none of them writes. A kernel
// launched in the ordinary way, a copy or an event orders itself after the completion of
// the kernel before it, which by the same argument is that of all before. In a captured
// stream the edge between two kernels becomes a programmatic one with the same meaning.
namespace flatquant {

namespace cuda {

__device__ inline void WaitForPredecessor() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

__device__ inline void LetSuccessorStart() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

}  // namespace cuda

inline cudaLaunchAttribute ClusterOf(unsigned ctas) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {ctas, 1, 1};
  return attribute;
}

// LaunchDependent of a kernel whose clusters get their size at launch; `ctas` 0 leaves the size
// to the kernel. The grid's x is a multiple of it.
template <typename... Params, typename... Args>
void LaunchDependentClusters(void (*kernel)(Params...), dim3 grid, unsigned ctas, unsigned threads,
                             size_t shared_bytes, cudaStream_t stream, Args&&... args) {
  cudaLaunchAttribute attributes[2] = {};
  cudaLaunchConfig_t config = {};
  config.gridDim = grid;
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = attributes;
  if (CurrentCudaDevice().sm_version >= 90) {
    cudaLaunchAttribute& early = attributes[config.numAttrs++];
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
  }
  if (ctas > 0) attributes[config.numAttrs++] = ClusterOf(ctas);
  // Every kernel asks for the same division of a multiprocessor's memory between L1 and shared
  // memory: only an empty multiprocessor can change it, so kernels that asked for different
  // ones would not run side by side, however small they are.
  FLATQUANT_CUDA(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout,
                                      cudaSharedmemCarveoutMaxShared));
  FLATQUANT_CUDA(cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
}

template <typename... Params, typename... Args>
void LaunchDependent(void (*kernel)(Params...), dim3 grid, unsigned threads, size_t shared_bytes,
                     cudaStream_t stream, Args&&... args) {
  LaunchDependentClusters(kernel, grid, 0, threads, shared_bytes, stream,
                          std::forward<Args>(args)...);
}

// Clusters of `ctas` that the empty device runs at once. Takes some microseconds: ask once.
template <typename... Params>
int MostActiveClusters(void (*kernel)(Params...), unsigned ctas, unsigned threads,
                       size_t shared_bytes) {
  cudaLaunchAttribute cluster = ClusterOf(ctas);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(ctas);
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.attrs = &cluster;
  config.numAttrs = 1;
  int clusters = 0;
  FLATQUANT_CUDA(cudaOccupancyMaxActiveClusters(&clusters, kernel, &config));
  return clusters;
}

}  // namespace flatquant
