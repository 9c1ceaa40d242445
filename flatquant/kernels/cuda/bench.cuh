#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "flatquant/kernels/cuda/measure.cuh"
#include "flatquant/kernels/limits/cuda_limits.h"

// Benchmarks of the CUDA kernels. Each *_bench.cu registers functions; every one times
// its kernels and adds rows to the one table.
namespace flatquant::cuda_bench {

class Report {
 public:
  explicit Report(const CudaLimits& limits) : limits_(limits) {}
  // Prints a row with operations or bytes over time, and the percentage of the limit.
  void Operations(std::string_view kernel, std::string_view shape, double seconds, double ops);
  void Bytes(std::string_view kernel, std::string_view shape, double seconds, double bytes);
  void Time(std::string_view kernel, std::string_view shape, double seconds);

 private:
  CudaLimits limits_;
};

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

}  // namespace flatquant::cuda_bench
