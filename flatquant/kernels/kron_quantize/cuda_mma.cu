#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/kron_quantize/cuda_input.cuh"
#include "flatquant/kernels/kron_quantize/cuda_kernels.h"

// Any L and R on any GPU: a CTA per token, X, Z and Y in shared memory, products by
// mma.sync, the matrices through the caches.

namespace flatquant::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

struct Sizes {
  int left, right;          // L, R
  int left_pad, right_pad;  // rounded up to 16
  int x_stride, z_stride;   // elements per row in shared memory: X [L][R], Z^T [R][L]
};

Sizes SizesOf(const CudaKronTransform& transform) {
  const int left = static_cast<int>(transform.left_size);
  const int right = static_cast<int>(transform.right_size);
  const int left_pad = (left + 15) / 16 * 16;
  const int right_pad = (right + 15) / 16 * 16;
  // 16 more bytes per row spread the rows of a fragment over the banks.
  return {left, right, left_pad, right_pad, right_pad + 8, left_pad + 8};
}

template <typename T>
__device__ uint32_t LoadPair(const T* from) {
  return *reinterpret_cast<const uint32_t*>(from);
}

// D [16 m, 16 n] of the tiles at (m, n): D = A B^T, A [.., k] and B [.., k] of the given
// strides; store(row, col, value) takes each element.
template <typename T, typename Store>
__device__ void MultiplyTiles(const T* a, int a_stride, int m_tiles, const T* b, int b_stride,
                              int n_tiles, int k_size, const Store& store) {
  const int warp = threadIdx.x / 32;
  const int g = threadIdx.x % 32 / 4;
  const int c = threadIdx.x % 4;
  for (int tile = warp; tile < m_tiles * n_tiles; tile += kWarps) {
    const int m = tile % m_tiles * 16;
    const int n = tile / m_tiles * 16;
    float d[2][4] = {};
    for (int k = 0; k < k_size; k += 16) {
      const T* from = a + (m + g) * a_stride + k + 2 * c;
      const uint32_t operand[4] = {LoadPair(from), LoadPair(from + 8 * a_stride),
                                   LoadPair(from + 8), LoadPair(from + 8 * a_stride + 8)};
      for (int i = 0; i < 2; ++i) {
        const T* other = b + (n + 8 * i + g) * b_stride + k + 2 * c;
        Mma16<T>(d[i], operand, LoadPair(other), LoadPair(other + 8));
      }
    }
    for (int i = 0; i < 2; ++i) {
      for (int j = 0; j < 4; ++j) store(m + g + j / 2 * 8, n + 8 * i + 2 * c + j % 2, d[i][j]);
    }
  }
}

template <typename T>
__device__ void WriteToken(const CudaKronQuantizeArgs& args, int64_t token, Extremes all,
                           const T* values, int cols, int stride) {
  const float factor = NormFactor(args, all.square_sum);
  const int width = static_cast<int>(args.width);
  if (args.bits == 16) {
    for (int i = threadIdx.x; i < width; i += kThreads) {
      static_cast<T*>(args.y)[token * width + i] =
          Element<T>::FromFloat(factor * Element<T>::ToFloat(values[i / cols * stride + i % cols]));
    }
    return;
  }
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  for (int clip = 0; clip < args.clip_count; ++clip) {
    const float scale = ChooseScale(all, args.clips[clip], top);
    const Coder code(scale, top);
    int8_t* codes = args.codes + (clip * args.tokens + token) * args.code_stride;
    for (int i = threadIdx.x; i < width; i += kThreads) {
      const float value = Element<T>::ToFloat(values[i / cols * stride + i % cols]);
      codes[i] = static_cast<int8_t>(code(value));
    }
    ClearTail(args, codes);
    if (threadIdx.x == 0) args.scales[clip * args.tokens + token] = scale * factor;
  }
}

template <typename T>
__global__ void __launch_bounds__(kThreads) KronKernel(CudaKronQuantizeArgs args, Sizes sizes) {
  extern __shared__ uint8_t shared[];
  __shared__ Extremes extremes[kWarps];
  LetSuccessorStart();
  PrefetchNorm(args);
  WaitForPredecessor();
  T* x = reinterpret_cast<T*>(shared);
  T* z = x + sizes.left_pad * sizes.x_stride;
  const T* left = static_cast<const T*>(args.transform.packed);
  const T* right = left + sizes.left_pad * sizes.left_pad;
  const int64_t token = blockIdx.x;
  const SiteInput<T> input(args, token);
  Extremes mine;
  for (int i = threadIdx.x; i < sizes.left_pad * sizes.right_pad; i += kThreads) {
    const int row = i / sizes.right_pad;
    const int col = i % sizes.right_pad;
    float value = 0;
    if (row < sizes.left && col < sizes.right) {
      value = InputElement(input, row * sizes.right + col, mine.square_sum);
    }
    x[row * sizes.x_stride + col] = Element<T>::FromFloat(value);
  }
  __syncthreads();
  MultiplyTiles(right, sizes.right_pad, sizes.right_pad / 16, x, sizes.x_stride,
                sizes.left_pad / 16, sizes.right_pad, [&](int r, int l, float value) {
                  z[r * sizes.z_stride + l] = Element<T>::FromFloat(value);
                });
  __syncthreads();
  MultiplyTiles(z, sizes.z_stride, sizes.right_pad / 16, left, sizes.left_pad, sizes.left_pad / 16,
                sizes.left_pad, [&](int r, int l, float value) {
                  const T rounded = Element<T>::FromFloat(value);
                  x[l * sizes.x_stride + r] = rounded;
                  mine.max = fmaxf(mine.max, Element<T>::ToFloat(rounded));
                  mine.min = fminf(mine.min, Element<T>::ToFloat(rounded));
                });
  mine.square_sum = WarpSum(mine.square_sum);
  const Extremes all = ReduceExtremes(mine, extremes);
  WriteToken(args, token, all, x, sizes.right, sizes.x_stride);
}

}  // namespace

void KronQuantizeMma(const CudaKronQuantizeArgs& args, CudaStream stream) {
  const Sizes sizes = SizesOf(args.transform);
  const int64_t bytes =
      2 * (int64_t{sizes.left_pad} * sizes.x_stride + int64_t{sizes.right_pad} * sizes.z_stride);
  CheckKronShared(bytes, args.width);
  ForElement(args.dtype, [&](auto element) {
    const auto kernel = KronKernel<decltype(element)>;
    AllowSharedMemory(kernel, static_cast<size_t>(bytes));
    LaunchDependent(kernel, static_cast<unsigned>(args.tokens), kThreads,
                    static_cast<size_t>(bytes), stream, args, sizes);
  });
  CheckCudaLaunch("KronQuantizeMma");
}

}  // namespace flatquant::cuda
