#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <functional>

#include "flatquant/kernels/cuda/device_buffer.cuh"

// How launches are timed, and what they work on: never zeros, which the GPU multiplies
// with less power and so at a higher clock.
namespace flatquant::cuda_bench {

// Seconds per launch: launch(i, stream) is captured for i in [0, count) as one graph
// (so that the host's launch time does not count) and the median of several replays
// taken. Rotate among `count` sets of buffers by i where data must come from memory.
double MedianSeconds(int count, const std::function<void(int, cudaStream_t)>& launch);

// Device memory of random bytes.
DeviceBuffer<uint8_t> RandomBytes(size_t bytes, uint32_t seed);
// int8 values in [-8, 8), shifted left by `shift`.
DeviceBuffer<int8_t> RandomCodes(size_t count, uint32_t seed, int shift = 0);
// fp16 normal-like values in about [-4, 4].
DeviceBuffer<uint16_t> RandomHalves(size_t count, uint32_t seed);
DeviceBuffer<float> RandomScales(size_t count, uint32_t seed);
DeviceBuffer<uint16_t> RandomBf16Scales(size_t count, uint32_t seed);

}  // namespace flatquant::cuda_bench
