#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"

namespace flatquant {
namespace {

// A CTA takes 16 tokens, each of its warps another head of them. Up to so many tokens it has its
// transform in shared memory before its turn comes; with more there are more CTAs than places,
// and the caches' copy serves those of a multiprocessor.
constexpr int kTokens = 16;
constexpr int64_t kMostHeldTokens = 128;
// With two warps and a transform a CTA finds room beside those of the linear before it.
template <bool kHeld>
constexpr int kWarps = kHeld ? 2 : 4;

// Between memory, read and written 16 bytes at a time, and registers.
template <int kDim, bool kHeld>
struct Shared {
  // 8 floats more per token spread the four rows that half a warp reads over the banks.
  static constexpr int kAngleStride = kDim / 2 + 8;
  static constexpr int kThreads = kWarps<kHeld> * 32;
  static constexpr int kFragments = kHeld ? kDim * kDim / 8 : 0;
  alignas(256) uint8_t vectors[kWarps<kHeld>][kTokens * kDim * 2];  // rows as swizzle.cuh has them
  alignas(16) float cos[kTokens * kAngleStride];
  alignas(16) float sin[kTokens * kAngleStride];

  // Of the CTA's heads, which are all of Q, of K or of V: behind this.
  __device__ uint4* Transform() { return reinterpret_cast<uint4*>(this + 1); }
  static constexpr size_t Bytes() { return sizeof(Shared) + kFragments * sizeof(uint4); }
};

// A warp holds its 16 vectors: v[j][2 h + i] is token g + 8 h, element 8 j + 2 c + i, which
// is how mma.sync takes its first operand and gives its result.
template <int kDim>
using Vectors = float[kDim / 8][4];

struct Rows {
  bool inside[2];   // rows g and g + 8
  int64_t slot[2];  // of their tokens
  int64_t position[2];
};

__device__ uint32_t SharedAt(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts copying a head's vectors of tokens [first, first + 16), zeros from `end` on.
template <typename T, int kDim>
__device__ void RequestVectors(const CudaQuantizeKvArgs& args, int64_t first, int64_t end,
                               int64_t head, uint8_t* to) {
  constexpr int kChunks = kDim / 8;
#pragma unroll
  for (int i = threadIdx.x % 32; i < kTokens * kChunks; i += 32) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < end;
    const T* from = static_cast<const T*>(args.qkv) +
                    (inside ? token * args.qkv_stride + head * kDim + i % kChunks * 8 : 0);
    cuda::CopyAsync16(SharedAt(to) + cuda::ChunkOffset<kDim>(i / kChunks, i % kChunks), from,
                      inside ? 16 : 0);
  }
}

// All warps together: the tokens' angles.
template <int kDim, bool kHeld>
__device__ void RequestAngles(const CudaQuantizeKvArgs& args, int64_t first,
                              Shared<kDim, kHeld>& shared) {
  constexpr int kChunks = kDim / 8;  // of four floats
#pragma unroll
  for (int i = threadIdx.x; i < kTokens * kChunks; i += shared.kThreads) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < args.tokens;
    const int64_t from = inside ? args.positions[token] * int64_t{kDim / 2} + i % kChunks * 4 : 0;
    const int to = i / kChunks * Shared<kDim, kHeld>::kAngleStride + i % kChunks * 4;
    cuda::CopyAsync16(SharedAt(shared.cos + to), args.cos + from, inside ? 16 : 0);
    cuda::CopyAsync16(SharedAt(shared.sin + to), args.sin + from, inside ? 16 : 0);
  }
}

template <typename T, int kDim>
__device__ void Load(const uint8_t* vectors, Vectors<kDim>& v) {
  const uint32_t from = SharedAt(vectors) + cuda::ByColumns<kDim>(threadIdx.x % 32);
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
    uint32_t pairs[4];
    cuda::LoadMatrix(pairs, from ^ (s << 5));
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float2 pair = cuda::Element<T>::ToFloat2(pairs[i]);
      v[2 * s + i / 2][i % 2 * 2] = pair.x;
      v[2 * s + i / 2][i % 2 * 2 + 1] = pair.y;
    }
  }
}

// Over the four lanes that share a row.
template <typename Combine>
__device__ float AcrossRow(float x, const Combine& combine) {
  x = combine(x, __shfl_xor_sync(~0u, x, 1));
  return combine(x, __shfl_xor_sync(~0u, x, 2));
}

template <typename T, int kDim>
__device__ void Norm(const void* weight, float eps, Vectors<kDim>& v) {
  float factor[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = 0;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      sum += v[j][2 * h] * v[j][2 * h] + v[j][2 * h + 1] * v[j][2 * h + 1];
    }
    factor[h] = rsqrtf(AcrossRow(sum, [](float a, float b) { return a + b; }) / kDim + eps);
  }
  const T* at = static_cast<const T*>(weight) + threadIdx.x % 4 * 2;
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    const float2 w =
        cuda::Element<T>::ToFloat2(__ldg(reinterpret_cast<const uint32_t*>(at + 8 * j)));
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      v[j][2 * h] *= factor[h] * w.x;
      v[j][2 * h + 1] *= factor[h] * w.y;
    }
  }
}

// Pairs (i, i + kDim / 2) are in the same thread, kDim / 16 blocks of eight apart.
template <int kDim, bool kHeld>
__device__ void Rotate(const Shared<kDim, kHeld>& shared, Vectors<kDim>& v) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int at =
        (threadIdx.x % 32 / 4 + 8 * h) * Shared<kDim, kHeld>::kAngleStride + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < kDim / 16; ++j) {
      const float2 cos = *reinterpret_cast<const float2*>(shared.cos + at + 8 * j);
      const float2 sin = *reinterpret_cast<const float2*>(shared.sin + at + 8 * j);
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float a = v[j][2 * h + i];
        const float b = v[j + kDim / 16][2 * h + i];
        const float turn_cos = i == 0 ? cos.x : cos.y;
        const float turn_sin = i == 0 ? sin.x : sin.y;
        v[j][2 * h + i] = a * turn_cos - b * turn_sin;
        v[j + kDim / 16][2 * h + i] = b * turn_cos + a * turn_sin;
      }
    }
  }
}

// v = v P, operands rounded to T.
template <typename T, int kDim, bool kHeld>
__device__ void Transform(const uint4* packed, Vectors<kDim>& v) {
  const uint4* fragments = packed + threadIdx.x % 32;
  uint32_t a[kDim / 16][4];
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = v[2 * s + i / 2] + i % 2 * 2;
      a[s][i] = cuda::Element<T>::Pack(pair[0], pair[1]);
    }
  }
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
    float d[4] = {};
#pragma unroll
    for (int s = 0; s < kDim / 32; ++s) {
      const uint4* at = fragments + (j * (kDim / 32) + s) * 32;
      const uint4 b = kHeld ? *at : __ldg(at);
      cuda::Mma16<T>(d, a[2 * s], b.x, b.y);
      cuda::Mma16<T>(d, a[2 * s + 1], b.z, b.w);
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) v[j][i] = d[i];
  }
}

// Lane c of four holds byte i of four words: afterwards it holds word c, whose byte i
// came from lane i.
__device__ uint32_t TransposeBytes(uint32_t word) {
  const int c = threadIdx.x % 4;
  uint32_t other = __shfl_xor_sync(~0u, word, 1);
  word = __byte_perm(word, other, c % 2 == 0 ? 0x6240 : 0x3715);
  other = __shfl_xor_sync(~0u, word, 2);
  return __byte_perm(word, other, c < 2 ? 0x5410 : 0x3276);
}

// The number of a row's vector in a plane.
__device__ int64_t VectorAt(const CudaKvPlane& plane, int64_t slot, int64_t head,
                            int64_t position) {
  return (slot * plane.heads + head) * plane.capacity + position;
}

template <int kDim>
__device__ void Quantize(const Rows& rows, const CudaKvPlane& plane, KronClip clip, int64_t head,
                         const Vectors<kDim>& v) {
  const int c = threadIdx.x % 4;
  const float top = static_cast<float>((1 << plane.bits) - 1);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float lo = 0;
    float hi = 0;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      lo = fminf(lo, fminf(v[j][2 * h], v[j][2 * h + 1]));
      hi = fmaxf(hi, fmaxf(v[j][2 * h], v[j][2 * h + 1]));
    }
    lo = clip.min * AcrossRow(lo, [](float a, float b) { return fminf(a, b); });
    hi = clip.max * AcrossRow(hi, [](float a, float b) { return fmaxf(a, b); });
    float scale = __fdiv_rn(hi - lo, top);
    float zero = 0;
    if (scale > 0) {
      zero = rintf(__fdiv_rn(-lo, scale));
    } else {
      scale = 1;
    }
    const float inverse = 1.0f / scale;
    uint32_t words[kDim / 32];
#pragma unroll
    for (int q = 0; q < kDim / 32; ++q) {
      uint32_t bytes = 0;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float* pair = v[4 * q + i] + 2 * h;
        const float even = fminf(fmaxf(rintf(pair[0] * inverse) + zero, 0.0f), top);
        const float odd = fminf(fmaxf(rintf(pair[1] * inverse) + zero, 0.0f), top);
        bytes |= (static_cast<uint32_t>(even) | static_cast<uint32_t>(odd) << 4) << (8 * i);
      }
      words[q] = TransposeBytes(bytes);
    }
    if (!rows.inside[h]) continue;
    const int64_t index = VectorAt(plane, rows.slot[h], head, rows.position[h]);
    uint32_t* out = reinterpret_cast<uint32_t*>(plane.data + index * (kDim / 2));
#pragma unroll
    for (int q = 0; q < kDim / 32; ++q) out[4 * q + c] = words[q];
    if (c == 0) {
      plane.scale[index] = scale;
      plane.zero[index] = static_cast<uint8_t>(zero);
    }
  }
}

// Rounds the warp's vectors to T and writes those of tokens below `end` to to(token), through
// shared memory.
template <typename T, int kDim, typename To>
__device__ void Store(int64_t first, int64_t end, const Vectors<kDim>& v, uint8_t* vectors,
                      const To& to) {
  constexpr int kChunks = kDim / 8;
  const int lane = threadIdx.x % 32;
  __syncwarp();  // all lanes have read the vectors that came
#pragma unroll
  for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<uint32_t*>(vectors + cuda::ChunkOffset<kDim>(lane / 4 + 8 * h, j) +
                                   lane % 4 * 4) =
          cuda::Element<T>::Pack(v[j][2 * h], v[j][2 * h + 1]);
    }
  }
  __syncwarp();
#pragma unroll
  for (int i = lane; i < kTokens * kChunks; i += 32) {
    const int64_t token = first + i / kChunks;
    if (token >= end) continue;
    reinterpret_cast<uint4*>(to(token))[i % kChunks] = *reinterpret_cast<const uint4*>(
        vectors + cuda::ChunkOffset<kDim>(i / kChunks, i % kChunks));
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
  const int64_t first = blockIdx.x * int64_t{kTokens};
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
        cuda::CopyAsync16(SharedAt(shared.Transform() + i), transform + i, 16);
      }
      transform = shared.Transform();
    }
  }
  if (rotates) RequestAngles(args, first, shared);
  Rows rows;
  int64_t token[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
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
    if (head < heads) RequestVectors<T, kDim>(args, first, end, head0 + head, vectors);
    cuda::CopyAsyncCommit();
    cuda::CopyAsyncWait<0>();
    __syncthreads();
    if (head >= heads) return;
    Vectors<kDim> v;
    Load<T, kDim>(vectors, v);
    if (norm != nullptr) Norm<T, kDim>(norm, args.norm_eps, v);
    if (rotates) Rotate(shared, v);
    if (transform != nullptr) Transform<T, kDim, kHeld>(transform, v);
    for (int h = 0; h < 2; ++h) rows.inside[h] = token[h] < end;
    if (kind == Kind::kQuery) {
      Store<T, kDim>(first, end, v, vectors, [&](int64_t t) {
        return static_cast<T*>(args.q) + (t * args.heads + head) * kDim;
      });
    } else if (plane.packed()) {
      Quantize<kDim>(rows, plane, kind == Kind::kKey ? args.k_clip : args.v_clip, head, v);
    } else {
      Store<T, kDim>(first, end, v, vectors, [&](int64_t t) {
        return reinterpret_cast<T*>(plane.data) +
               VectorAt(plane, args.slots[t], head, args.positions[t]) * kDim;
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
      static_cast<unsigned>(CeilDiv(args.tokens, kTokens)),
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
