#include "flatquant/runtime/cuda/cuda_device.h"

#include <charconv>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"

namespace flatquant {

int CudaDeviceCount() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess ? count : 0;
}

int ParseCudaDevice(const std::string& name) {
  int ordinal = 0;
  const std::string number = name.size() > 5 ? name.substr(5) : "0";
  const auto [end, status] = std::from_chars(number.data(), number.data() + number.size(), ordinal);
  const bool is_number = status == std::errc{} && end == number.data() + number.size();
  if ((name != "cuda" && !name.starts_with("cuda:")) || !is_number || ordinal < 0) {
    throw Error("cuda.no_device", "--device " + name, "is no GPU's name", "use cuda or cuda:N");
  }
  const int count = CudaDeviceCount();
  if (ordinal >= count) {
    throw Error("cuda.no_device", "--device " + name,
                "this machine has " + std::to_string(count) + " GPUs that CUDA can use",
                count > 0 ? "use cuda:0 to cuda:" + std::to_string(count - 1)
                          : "check the driver with nvidia-smi, or use --device cpu");
  }
  return ordinal;
}

void UseCudaDevice(int ordinal) { FLATQUANT_CUDA(cudaSetDevice(ordinal)); }

}  // namespace flatquant
