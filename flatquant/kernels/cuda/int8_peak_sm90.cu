#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/int8_peak.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"

namespace flatquant::cuda {
namespace {

constexpr int kOperandBytes = 256 * 128;  // 256 columns, four products deep

__device__ uint32_t Hash(uint32_t x) {
  x = (x ^ (x >> 16)) * 0x7feb352du;
  x = (x ^ (x >> 15)) * 0x846ca68bu;
  return x ^ (x >> 16);
}

__global__ void __launch_bounds__(256, 1)
    PeakKernel(int products, uint32_t a_mask, int b_shift, int32_t* sink) {
  extern __shared__ uint8_t shared[];
  const uint32_t base = (SharedAddress(shared) + 1023) & ~1023u;
  uint8_t* operand = shared + (base - SharedAddress(shared));
  for (int i = threadIdx.x; i < kOperandBytes; i += 256) {
    const int code = static_cast<int>(Hash(i + 77) % 16) - 8;
    operand[i] = static_cast<uint8_t>(code * (1 << b_shift));
  }
  uint32_t a[16];
  for (int i = 0; i < 16; ++i) a[i] = Hash(threadIdx.x * 16 + i + blockIdx.x * 4096) & a_mask;
  int32_t acc[128];
  for (int i = 0; i < 128; ++i) acc[i] = 0;
  FenceAsyncProxy();
  __syncthreads();
  for (int i = 0; i < 16; ++i) WgmmaPin(a[i]);
  for (int n = 0; n < products; n += 4) {
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < 4; ++s) {
      WgmmaInt8<256>::Run(acc, a[4 * s], a[4 * s + 1], a[4 * s + 2], a[4 * s + 3],
                          SwizzledOperand(base + 32 * s), 1);
    }
    WgmmaCommit();
    WgmmaWait<1>();
  }
  WgmmaWait<0>();
  int32_t sum = 0;
  for (int i = 0; i < 128; ++i) {
    WgmmaPin(acc[i]);
    sum += acc[i];
  }
  if (sum == 0x12345678) *sink = sum;
}

}  // namespace

void LaunchInt8Peak(int products, uint32_t a_mask, int b_shift, int32_t* sink, CudaStream stream) {
  constexpr int kSharedBytes = kOperandBytes + 1024;
  AllowSharedMemory(PeakKernel, kSharedBytes);
  PeakKernel<<<CurrentCudaDevice().sm_count, 256, kSharedBytes, stream>>>(products, a_mask, b_shift,
                                                                          sink);
  CheckCudaLaunch("LaunchInt8Peak");
}

}  // namespace flatquant::cuda
