#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/kron_quantize/cuda_input.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"

// Without a transform: RMSNorm, SwiGLU or nothing, then codes or 16 bits. A CTA per token,
// eight elements at a time, which wait in shared memory, rounded, for the token's scale.

namespace flatquant::cuda {
namespace {

// A token of 4096 elements is one round.
constexpr int kThreads = 512;

template <typename T>
__global__ void __launch_bounds__(kThreads) RowsKernel(CudaKronQuantizeArgs args) {
  extern __shared__ uint4 rounded[];
  __shared__ Extremes extremes[kThreads / 32];
  LetSuccessorStart();
  PrefetchNorm(args);
  WaitForPredecessor();
  const int64_t token = blockIdx.x;
  const int width = static_cast<int>(args.width);
  const int chunks = (width + 7) / 8;
  const bool aligned = width % 8 == 0 && args.x_stride % 8 == 0;
  const SiteInput<T> input(args, token);
  Extremes mine;
  for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
    float v[8] = {};
    if (aligned) {
      input.Finish(input.Load(8 * chunk), v, mine.square_sum);
    } else {
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (8 * chunk + i < width) v[i] = InputElement(input, 8 * chunk + i, mine.square_sum);
      }
    }
    rounded[chunk] = Pack8<T>(v);
    Unpack8<T>(rounded[chunk], v);
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      mine.max = fmaxf(mine.max, v[i]);
      mine.min = fminf(mine.min, v[i]);
    }
  }
  mine.square_sum = WarpSum(mine.square_sum);
  const Extremes all = ReduceExtremes(mine, extremes);
  const float factor = NormFactor(args, all.square_sum);
  // Every thread reads what it has written itself.
  if (args.bits == 16) {
    T* y = static_cast<T*>(args.y) + token * args.width;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
      float v[8];
      Unpack8<T>(rounded[chunk], v);
#pragma unroll
      for (int i = 0; i < 8; ++i) v[i] *= factor;
      if (aligned) {
        reinterpret_cast<uint4*>(y)[chunk] = Pack8<T>(v);
        continue;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (8 * chunk + i < width) y[8 * chunk + i] = Element<T>::FromFloat(v[i]);
      }
    }
    return;
  }
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  for (int clip = 0; clip < args.clip_count; ++clip) {
    const float scale = ChooseScale(all, args.clips[clip], top);
    const Coder code(scale, top);
    int8_t* codes = args.codes + (clip * args.tokens + token) * args.code_stride;
    for (int chunk = threadIdx.x; chunk < chunks; chunk += kThreads) {
      float v[8];
      Unpack8<T>(rounded[chunk], v);
      uint32_t words[2] = {0, 0};
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        // Beyond the width are zeros, as are their codes.
        words[i / 4] |= (code(v[i]) & 0xffu) << (i % 4 * 8);
      }
      *reinterpret_cast<uint2*>(codes + 8 * chunk) = make_uint2(words[0], words[1]);
    }
    for (int64_t i = 8 * chunks + threadIdx.x; i < args.code_stride; i += kThreads) codes[i] = 0;
    if (threadIdx.x == 0) args.scales[clip * args.tokens + token] = scale * factor;
  }
}

}  // namespace

void QuantizeRows(const CudaKronQuantizeArgs& args, CudaStream stream) {
  const int64_t needed = CeilDiv(args.width, 8) * 16;
  CheckKronShared(needed, args.width);
  const size_t bytes = AloneSharedMemory(args.tokens, static_cast<size_t>(needed));
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = RowsKernel<decltype(element)>;
    AllowSharedMemory(kernel, bytes);
    LaunchDependent(kernel, static_cast<unsigned>(args.tokens), kThreads, bytes, stream, args);
  });
  CheckCudaLaunch("QuantizeRows");
}

}  // namespace flatquant::cuda
