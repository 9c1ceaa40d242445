#pragma once

#include <cuda_runtime.h>

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "flatquant/kernels/cuda/device_buffer.cuh"

// Benchmarks of the CUDA kernels. Each *_bench.cu registers functions; every one times
// its kernels and adds rows to the one table.
namespace flatquant::cuda_bench {

// What the GPU can do, measured in the same process.
struct Limits {
  double copy_bytes = 0;  // bytes per second read and written by a large copy
  double int8_ops = 0;    // INT8 wgmma operations per second on random data
};

class Report {
 public:
  explicit Report(const Limits& limits) : limits_(limits) {}
  // Prints a row with operations or bytes over time, and the percentage of the limit.
  void Operations(std::string_view kernel, std::string_view shape, double seconds, double ops);
  void Bytes(std::string_view kernel, std::string_view shape, double seconds, double bytes);
  void Time(std::string_view kernel, std::string_view shape, double seconds);

 private:
  Limits limits_;
};

// Seconds per launch: launch(i, stream) is captured for i in [0, count) as one graph
// (so that the host's launch time does not count) and the median of several replays
// taken. Rotate among `count` sets of buffers by i where data must come from memory.
double MedianSeconds(int count, const std::function<void(int, cudaStream_t)>& launch);

struct Entry {
  std::string name;
  void (*run)(Report& report);
};
std::vector<Entry>& Registry();

struct Registration {
  Registration(std::string name, void (*run)(Report&)) {
    Registry().push_back({std::move(name), run});
  }
};

// Device memory of random bytes.
DeviceBuffer<uint8_t> RandomBytes(size_t bytes, uint32_t seed);
// int8 values in [-8, 8), shifted left by `shift`.
DeviceBuffer<int8_t> RandomCodes(size_t count, uint32_t seed, int shift = 0);
// fp16 normal-like values in about [-4, 4].
DeviceBuffer<uint16_t> RandomHalves(size_t count, uint32_t seed);
DeviceBuffer<float> RandomScales(size_t count, uint32_t seed);

}  // namespace flatquant::cuda_bench
