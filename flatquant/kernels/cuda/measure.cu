#include "flatquant/kernels/cuda/measure.cuh"

#include <algorithm>
#include <vector>

namespace flatquant::cuda_bench {
namespace {

__device__ uint32_t Hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

// run(i, hash) for i in [0, count)
template <typename Run>
__global__ void ForEach(size_t count, uint32_t seed, Run run) {
  const size_t step = size_t{gridDim.x} * blockDim.x;
  for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    run(i, Hash(static_cast<uint32_t>(i) ^ Hash(seed)));
  }
}

template <typename T, typename Run>
DeviceBuffer<T> Filled(size_t count, uint32_t seed, const Run& run) {
  DeviceBuffer<T> buffer(count);
  T* data = buffer.get();
  ForEach<<<1024, 256>>>(count, seed,
                         [=] __device__(size_t i, uint32_t hash) { data[i] = run(hash); });
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  return buffer;
}

}  // namespace

double MedianSeconds(int count, const std::function<void(int, cudaStream_t)>& launch) {
  constexpr int kReplays = 9;
  cudaStream_t stream;
  FLATQUANT_CUDA(cudaStreamCreate(&stream));
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  FLATQUANT_CUDA(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < count; ++i) launch(i, stream);
  FLATQUANT_CUDA(cudaStreamEndCapture(stream, &graph));
  FLATQUANT_CUDA(cudaGraphInstantiate(&executable, graph, 0));
  cudaEvent_t begin;
  cudaEvent_t end;
  FLATQUANT_CUDA(cudaEventCreate(&begin));
  FLATQUANT_CUDA(cudaEventCreate(&end));
  FLATQUANT_CUDA(cudaGraphLaunch(executable, stream));  // warm-up
  std::vector<float> times(kReplays);
  for (float& time : times) {
    FLATQUANT_CUDA(cudaEventRecord(begin, stream));
    FLATQUANT_CUDA(cudaGraphLaunch(executable, stream));
    FLATQUANT_CUDA(cudaEventRecord(end, stream));
    FLATQUANT_CUDA(cudaEventSynchronize(end));
    FLATQUANT_CUDA(cudaEventElapsedTime(&time, begin, end));
  }
  FLATQUANT_CUDA(cudaGraphExecDestroy(executable));
  FLATQUANT_CUDA(cudaGraphDestroy(graph));
  FLATQUANT_CUDA(cudaEventDestroy(begin));
  FLATQUANT_CUDA(cudaEventDestroy(end));
  FLATQUANT_CUDA(cudaStreamDestroy(stream));
  std::nth_element(times.begin(), times.begin() + kReplays / 2, times.end());
  return times[kReplays / 2] / 1e3 / count;
}

DeviceBuffer<uint8_t> RandomBytes(size_t bytes, uint32_t seed) {
  DeviceBuffer<uint8_t> buffer(bytes);
  uint32_t* data = reinterpret_cast<uint32_t*>(buffer.get());
  ForEach<<<1024, 256>>>(bytes / 4, seed,
                         [=] __device__(size_t i, uint32_t hash) { data[i] = hash; });
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  return buffer;
}

DeviceBuffer<int8_t> RandomCodes(size_t count, uint32_t seed, int shift) {
  return Filled<int8_t>(count, seed, [shift] __device__(uint32_t hash) {
    return static_cast<int8_t>((static_cast<int>(hash % 16) - 8) * (1 << shift));
  });
}

DeviceBuffer<uint16_t> RandomHalves(size_t count, uint32_t seed) {
  return Filled<uint16_t>(count, seed, [] __device__(uint32_t hash) {
    // Sign, exponent of 2^-4 .. 2^1, random mantissa.
    return static_cast<uint16_t>((hash & 0x83ff) | ((11 + (hash >> 20) % 6) << 10));
  });
}

DeviceBuffer<uint16_t> RandomBf16Scales(size_t count, uint32_t seed) {
  return Filled<uint16_t>(count, seed, [] __device__(uint32_t hash) {
    // Exponent of 2^-10 .. 2^-7, random mantissa.
    return static_cast<uint16_t>((hash & 0x7f) | ((117 + (hash >> 20) % 4) << 7));
  });
}

DeviceBuffer<float> RandomScales(size_t count, uint32_t seed) {
  return Filled<float>(count, seed, [] __device__(uint32_t hash) {
    return 0.001f + static_cast<float>(hash % 1000) * 1e-5f;
  });
}

}  // namespace flatquant::cuda_bench
