#include "flatquant/kernels/limits/cuda_limits.h"

#include <cstdint>

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/int8_peak.cuh"
#include "flatquant/kernels/cuda/measure.cuh"
#include "flatquant/kernels/gemm_float/cuda_gemm_float.h"

namespace flatquant {
namespace {

using cuda_bench::MedianSeconds;

__global__ void CopyKernel(const uint4* from, uint4* to) {
  const size_t first = blockIdx.x * size_t{1024} + threadIdx.x;
  uint4 values[4];
  for (int i = 0; i < 4; ++i) values[i] = __ldcs(from + first + 256 * i);
  for (int i = 0; i < 4; ++i) __stcs(to + first + 256 * i, values[i]);
}

double CopyBandwidth() {
  constexpr size_t kBytes = size_t{2} << 30;
  const DeviceBuffer<uint8_t> from = cuda_bench::RandomBytes(kBytes, 1);
  const DeviceBuffer<uint8_t> to(kBytes);
  const uint4* source = reinterpret_cast<const uint4*>(from.get());
  uint4* target = reinterpret_cast<uint4*>(to.get());
  // By a kernel, because a graph's copy nodes run on slower copy engines.
  const double seconds = MedianSeconds(2, [&](int, cudaStream_t stream) {
    CopyKernel<<<static_cast<unsigned>(kBytes / 16 / 1024), 256, 0, stream>>>(source, target);
  });
  return 2.0 * kBytes / seconds;
}

double Int8Peak() {
  if (CurrentCudaDevice().sm_version != 90) return 0;
  const DeviceBuffer<int32_t> sink(1);
  constexpr int kProducts = 16384;
  // Power, and with it the clock, depends on how many bits toggle.
  constexpr uint32_t kUpperNibbles = 0xf0f0f0f0u;
  const double seconds = MedianSeconds(4, [&](int, cudaStream_t stream) {
    cuda::LaunchInt8Peak(kProducts, kUpperNibbles, /*b_shift=*/0, sink.get(), stream);
  });
  return 2.0 * 64 * 256 * 32 * 2 * kProducts * CurrentCudaDevice().sm_count / seconds;
}

double Bf16Peak() try {
  constexpr int64_t kSize = 8192;
  const DeviceBuffer<uint16_t> x = cuda_bench::RandomHalves(kSize * kSize, 1);
  const DeviceBuffer<uint16_t> weight = cuda_bench::RandomHalves(kSize * kSize, 2);
  const DeviceBuffer<uint16_t> y(kSize * kSize);
  CudaGemmFloat gemm;
  CudaGemmFloatArgs args;
  args.dtype = args.y_dtype = DType::kBF16;
  args.x = x.get();
  args.weight = weight.get();
  args.y = y.get();
  args.tokens = args.rows = args.cols = args.x_stride = args.y_stride = kSize;
  gemm(args, nullptr);  // asks for the algorithm
  FLATQUANT_CUDA(cudaDeviceSynchronize());
  const double seconds = MedianSeconds(4, [&](int, cudaStream_t stream) { gemm(args, stream); });
  return 2.0 * kSize * kSize * kSize / seconds;
} catch (const Error& error) {
  if (error.name() == "cuda.no_cublas") return 0;
  throw;
}

}  // namespace

CudaLimits MeasureCudaLimits() { return {CopyBandwidth(), Int8Peak(), Bf16Peak()}; }

}  // namespace flatquant
