#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/quantize_kv/cuda_head_vectors.cuh"

namespace flatquant {
namespace {

// A CTA takes 16 tokens, each of its warps another head of them. Up to so many tokens it has its
// transform in shared memory before its turn comes; with more there are more CTAs than places,
// and the caches' copy serves those of a multiprocessor.
constexpr int64_t kMostHeldTokens = 128;
// With two warps and a transform a CTA finds room beside those of the linear before it.
template <bool kHeld>
constexpr int kWarps = kHeld ? 2 : 4;

// Between memory, read and written 16 bytes at a time, and registers.
template <int kDim, bool kHeld>
struct Shared {
  static constexpr int kThreads = kWarps<kHeld> * 32;
  static constexpr int kFragments = kHeld ? kDim * kDim / 8 : 0;
  // Rows as swizzle.cuh has them.
  alignas(256) uint8_t vectors[kWarps<kHeld>][cuda::kHeadTokens * kDim * 2];
  alignas(16) float cos[cuda::kHeadTokens * cuda::kAngleStride<kDim>];
  alignas(16) float sin[cuda::kHeadTokens * cuda::kAngleStride<kDim>];

  // Of the CTA's heads, which are all of Q, of K or of V: behind this.
  __device__ uint4* Transform() { return reinterpret_cast<uint4*>(this + 1); }
  static constexpr size_t Bytes() { return sizeof(Shared) + kFragments * sizeof(uint4); }
};

// All warps together: the tokens' angles.
template <int kDim, bool kHeld>
__device__ void RequestAngles(const CudaQuantizeKvArgs& args, int64_t first,
                              Shared<kDim, kHeld>& shared) {
  constexpr int kChunks = kDim / 8;  // of four floats
#pragma unroll
  for (int i = threadIdx.x; i < cuda::kHeadTokens * kChunks; i += shared.kThreads) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < args.tokens;
    const int64_t from = inside ? args.positions[token] * int64_t{kDim / 2} + i % kChunks * 4 : 0;
    const int to = i / kChunks * cuda::kAngleStride<kDim> + i % kChunks * 4;
    cuda::CopyAsync16(cuda::SharedAddress(shared.cos + to), args.cos + from, inside ? 16 : 0);
    cuda::CopyAsync16(cuda::SharedAddress(shared.sin + to), args.sin + from, inside ? 16 : 0);
  }
}

enum class Kind { kQuery, kKey, kValue };

template <bool kHeld>
constexpr int64_t HeadBlocks(int64_t heads) {
  return (heads + kWarps<kHeld> - 1) / kWarps<kHeld>;
}

// blockIdx.y: a block of heads of Q, K or V, in this order.
template <typename T, int kDim, bool kHeld>
__global__ void __launch_bounds__(Shared<kDim, kHeld>::kThreads)
    QuantizeKvKernel(const __grid_constant__ CudaQuantizeKvArgs args) {
  using Memory = Shared<kDim, kHeld>;
  extern __shared__ __align__(256) uint8_t memory[];
  Memory& shared = *reinterpret_cast<Memory*>(memory);
  cuda::LetSuccessorStart();
  const int warp = threadIdx.x / 32;
  const int64_t first = blockIdx.x * int64_t{cuda::kHeadTokens};
  const int64_t q_blocks = HeadBlocks<kHeld>(args.heads);
  const int64_t kv_blocks = HeadBlocks<kHeld>(args.k.heads);
  const Kind kind = blockIdx.y < q_blocks               ? Kind::kQuery
                    : blockIdx.y < q_blocks + kv_blocks ? Kind::kKey
                                                        : Kind::kValue;
  const int64_t heads = kind == Kind::kQuery ? args.heads : args.k.heads;
  const int64_t before = kind == Kind::kQuery ? 0
                         : kind == Kind::kKey ? q_blocks
                                              : q_blocks + kv_blocks;
  const int64_t head = (blockIdx.y - before) * kWarps<kHeld> + warp;
  const int64_t head0 = kind == Kind::kQuery ? 0
                        : kind == Kind::kKey ? args.heads
                                             : args.heads + args.k.heads;
  const bool rotates = kind != Kind::kValue && args.cos != nullptr;
  const uint4* transform = static_cast<const uint4*>(kind == Kind::kQuery ? args.q_transform
                                                     : kind == Kind::kKey ? args.k_transform
                                                                          : nullptr);
  // What is not the predecessor's work: all but the vectors.
  if constexpr (kHeld) {
    if (transform != nullptr) {
      for (int i = threadIdx.x; i < Memory::kFragments; i += Memory::kThreads) {
        cuda::CopyAsync16(cuda::SharedAddress(shared.Transform() + i), transform + i, 16);
      }
      transform = shared.Transform();
    }
  }
  if (rotates) RequestAngles(args, first, shared);
  cuda::Rows rows;
  int64_t token[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    rows.any[h] = first + 8 * h < args.tokens;
    token[h] = first + threadIdx.x % 32 / 4 + 8 * h;
    const bool inside = token[h] < args.tokens;
    rows.slot[h] = inside ? args.slots[token[h]] : 0;
    rows.position[h] = inside ? args.positions[token[h]] : 0;
  }
  const void* norm = kind == Kind::kQuery ? args.q_norm
                     : kind == Kind::kKey ? args.k_norm
                                          : nullptr;
  const CudaKvPlane& plane = kind == Kind::kKey ? args.k : args.v;
  uint8_t* vectors = shared.vectors[warp];
  // A first pass, for no tokens, brings the instructions into the caches, out of which the
  // kernels before have pushed them; until its turn comes the CTA has the time.
  int64_t end = kHeld ? first : args.tokens;
  for (bool is_last = !kHeld;; is_last = true, end = args.tokens) {
    if (is_last) cuda::WaitForPredecessor();
    if (head < heads) cuda::RequestVectors<T, kDim>(args, first, end, head0 + head, vectors);
    cuda::CopyAsyncCommit();
    cuda::CopyAsyncWait<0>();
    __syncthreads();
    if (head >= heads) return;
    cuda::Vectors<kDim> v;
    cuda::Load<T, kDim>(vectors, v);
    if (norm != nullptr) cuda::Norm<T, kDim>(rows, norm, args.norm_eps, v);
    if (rotates) cuda::Rotate<kDim>(rows, shared.cos, shared.sin, v);
    if (transform != nullptr) cuda::Transform<T, kDim, kHeld>(transform, v);
    for (int h = 0; h < 2; ++h) rows.inside[h] = token[h] < end;
    if (kind == Kind::kQuery) {
      cuda::Store<T, kDim>(rows, first, end, v, vectors, [&](int64_t t) {
        return static_cast<T*>(args.q) + (t * args.heads + head) * kDim;
      });
    } else if (plane.packed()) {
      cuda::Quantize<kDim>(rows, plane, kind == Kind::kKey ? args.k_clip : args.v_clip, head, v);
    } else {
      cuda::Store<T, kDim>(rows, first, end, v, vectors, [&](int64_t t) {
        return reinterpret_cast<T*>(plane.data) +
               cuda::VectorAt(plane, args.slots[t], head, args.positions[t]) * kDim;
      });
    }
    if (is_last) return;
    __syncwarp();  // all lanes are done with the vectors
  }
}

template <typename T, int kDim, bool kHeld>
void Launch(const CudaQuantizeKvArgs& args, CudaStream stream) {
  using Memory = Shared<kDim, kHeld>;
  const dim3 grid(
      static_cast<unsigned>(CeilDiv(args.tokens, cuda::kHeadTokens)),
      static_cast<unsigned>(HeadBlocks<kHeld>(args.heads) + 2 * HeadBlocks<kHeld>(args.k.heads)));
  const auto kernel = QuantizeKvKernel<T, kDim, kHeld>;
  AllowSharedMemory(kernel, Memory::Bytes());
  LaunchDependent(kernel, grid, Memory::kThreads, Memory::Bytes(), stream, args);
}

// Fragments of P^T as mma.sync's second operand: for eight columns j and 32 rows s, lane
// (g, c) has 16 bytes, P[32 s + {2c, 8 + 2c, 16 + 2c, 24 + 2c} + {0, 1}][8 j + g].
template <typename T>
__global__ void PackHeadTransformKernel(const float* matrix, int dim, T* packed) {
  const int index = blockIdx.x * blockDim.x + threadIdx.x;
  if (index >= dim * dim) return;
  const int lane = index / 8 % 32;
  const int block = index / 256;
  const int row = block % (dim / 32) * 32 + index % 8 / 2 * 8 + lane % 4 * 2 + index % 2;
  const int col = block / (dim / 32) * 8 + lane / 4;
  packed[index] = cuda::Element<T>::FromFloat(matrix[row * dim + col]);
}

}  // namespace

void CudaPackHeadTransform(const float* matrix, int64_t head_dim, DType dtype, void* packed,
                           CudaStream stream) {
  cuda::ForElement(dtype, [&](auto element) {
    PackHeadTransformKernel<<<static_cast<unsigned>(CeilDiv(head_dim * head_dim, 256)), 256, 0,
                              stream>>>(matrix, static_cast<int>(head_dim),
                                        static_cast<decltype(element)*>(packed));
  });
  CheckCudaLaunch("CudaPackHeadTransform");
}

void CudaQuantizeKv(const CudaQuantizeKvArgs& args, CudaStream stream) {
  for (const CudaKvPlane* plane : {&args.k, &args.v}) {
    FLATQUANT_CHECK((plane->bits >= 2 && plane->bits <= 4) || plane->bits == 16);
  }
  FLATQUANT_CHECK(args.k.heads == args.v.heads && args.qkv_stride % 8 == 0);
  if (args.tokens == 0) return;
  cuda::ForHeadDim(args.k.head_dim, [&](auto dim) {
    cuda::ForElement(args.dtype, [&](auto element) {
      using T = decltype(element);
      constexpr int kDim = decltype(dim)::value;
      if (args.tokens <= kMostHeldTokens) {
        Launch<T, kDim, true>(args, stream);
      } else {
        Launch<T, kDim, false>(args, stream);
      }
    });
  });
  CheckCudaLaunch("CudaQuantizeKv");
}

}  // namespace flatquant
