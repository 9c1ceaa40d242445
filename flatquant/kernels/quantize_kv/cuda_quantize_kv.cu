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

// A CTA takes 16 tokens, each of its warps another head of them.
constexpr int kWarps = 4;
constexpr int kTokens = 16;

// Between memory, read and written 16 bytes at a time, and registers.
template <int kDim>
struct Shared {
  // 8 floats more per token spread the four rows that half a warp reads over the banks.
  static constexpr int kAngleStride = kDim / 2 + 8;
  alignas(256) uint8_t vectors[kWarps][kTokens * kDim * 2];  // rows as swizzle.cuh has them
  alignas(16) float cos[kTokens * kAngleStride];
  alignas(16) float sin[kTokens * kAngleStride];
};

// A warp holds its 16 vectors: v[j][2 h + i] is token g + 8 h, element 8 j + 2 c + i, which
// is how mma.sync takes its first operand and gives its result.
template <int kDim>
using Vectors = float[kDim / 8][4];

struct Rows {
  int64_t token[2];  // of rows g and g + 8
  bool inside[2];
};

__device__ uint32_t SharedAt(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// Starts copying a head's vectors of tokens [first, first + 16), zeros beyond the last.
template <typename T, int kDim>
__device__ void RequestVectors(const CudaQuantizeKvArgs& args, int64_t first, int64_t head,
                               uint8_t* to) {
  constexpr int kChunks = kDim / 8;
#pragma unroll
  for (int i = threadIdx.x % 32; i < kTokens * kChunks; i += 32) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < args.tokens;
    const T* from = static_cast<const T*>(args.qkv) +
                    (inside ? token * args.qkv_stride + head * kDim + i % kChunks * 8 : 0);
    cuda::CopyAsync16(SharedAt(to) + cuda::ChunkOffset<kDim>(i / kChunks, i % kChunks), from,
                      inside ? 16 : 0);
  }
}

// All warps together: the tokens' angles.
template <int kDim>
__device__ void RequestAngles(const CudaQuantizeKvArgs& args, int64_t first, Shared<kDim>& shared) {
  constexpr int kChunks = kDim / 8;  // of four floats
#pragma unroll
  for (int i = threadIdx.x; i < kTokens * kChunks; i += kWarps * 32) {
    const int64_t token = first + i / kChunks;
    const bool inside = token < args.tokens;
    const int64_t from = inside ? args.positions[token] * int64_t{kDim / 2} + i % kChunks * 4 : 0;
    const int to = i / kChunks * Shared<kDim>::kAngleStride + i % kChunks * 4;
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
template <int kDim>
__device__ void Rotate(const Shared<kDim>& shared, Vectors<kDim>& v) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int at =
        (threadIdx.x % 32 / 4 + 8 * h) * Shared<kDim>::kAngleStride + threadIdx.x % 4 * 2;
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
template <typename T, int kDim>
__device__ void Transform(const void* packed, Vectors<kDim>& v) {
  const uint4* fragments = static_cast<const uint4*>(packed) + threadIdx.x % 32;
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
      const uint4 b = __ldg(fragments + (j * (kDim / 32) + s) * 32);
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
__device__ int64_t VectorAt(const CudaQuantizeKvArgs& args, int64_t token, const CudaKvPlane& plane,
                            int64_t head) {
  return (args.slots[token] * plane.heads + head) * plane.capacity + args.positions[token];
}

template <int kDim>
__device__ void Quantize(const CudaQuantizeKvArgs& args, const Rows& rows, const CudaKvPlane& plane,
                         KronClip clip, int64_t head, const Vectors<kDim>& v) {
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
    const int64_t index = VectorAt(args, rows.token[h], plane, head);
    uint32_t* out = reinterpret_cast<uint32_t*>(plane.data + index * (kDim / 2));
#pragma unroll
    for (int q = 0; q < kDim / 32; ++q) out[4 * q + c] = words[q];
    if (c == 0) {
      plane.scale[index] = scale;
      plane.zero[index] = static_cast<uint8_t>(zero);
    }
  }
}

// Rounds the warp's vectors to T and writes them to to(token), through shared memory.
template <typename T, int kDim, typename To>
__device__ void Store(const CudaQuantizeKvArgs& args, int64_t first, const Vectors<kDim>& v,
                      uint8_t* vectors, const To& to) {
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
    if (token >= args.tokens) continue;
    reinterpret_cast<uint4*>(to(token))[i % kChunks] = *reinterpret_cast<const uint4*>(
        vectors + cuda::ChunkOffset<kDim>(i / kChunks, i % kChunks));
  }
}

// blockIdx.y: four heads of Q, K or V, in their order in qkv.
template <typename T, int kDim>
__global__ void __launch_bounds__(kWarps * 32)
    QuantizeKvKernel(const __grid_constant__ CudaQuantizeKvArgs args) {
  __shared__ Shared<kDim> shared;
  cuda::LetSuccessorStart();
  cuda::WaitForPredecessor();
  const int warp = threadIdx.x / 32;
  const int64_t first = blockIdx.x * int64_t{kTokens};
  const int64_t head = blockIdx.y * int64_t{kWarps} + warp;
  const bool works = head < args.heads + 2 * args.k.heads;
  uint8_t* vectors = shared.vectors[warp];
  if (works) RequestVectors<T, kDim>(args, first, head, vectors);
  if (args.cos != nullptr) RequestAngles<kDim>(args, first, shared);
  cuda::CopyAsyncCommit();
  cuda::CopyAsyncWait<0>();
  __syncthreads();
  if (!works) return;
  Rows rows;
  for (int h = 0; h < 2; ++h) {
    rows.token[h] = first + threadIdx.x % 32 / 4 + 8 * h;
    rows.inside[h] = rows.token[h] < args.tokens;
  }
  const bool is_q = head < args.heads;
  const bool is_v = head >= args.heads + args.k.heads;
  Vectors<kDim> v;
  Load<T, kDim>(vectors, v);
  const void* norm = is_q ? args.q_norm : is_v ? nullptr : args.k_norm;
  if (norm != nullptr) Norm<T, kDim>(norm, args.norm_eps, v);
  if (!is_v && args.cos != nullptr) Rotate<kDim>(shared, v);
  const void* transform = is_q ? args.q_transform : is_v ? nullptr : args.k_transform;
  if (transform != nullptr) Transform<T, kDim>(transform, v);
  if (is_q) {
    Store<T, kDim>(args, first, v, vectors, [&](int64_t token) {
      return static_cast<T*>(args.q) + (token * args.heads + head) * kDim;
    });
    return;
  }
  const CudaKvPlane& plane = is_v ? args.v : args.k;
  const int64_t kv_head = head - args.heads - (is_v ? plane.heads : 0);
  if (plane.packed()) {
    Quantize<kDim>(args, rows, plane, is_v ? args.v_clip : args.k_clip, kv_head, v);
  } else {
    Store<T, kDim>(args, first, v, vectors, [&](int64_t token) {
      return reinterpret_cast<T*>(plane.data) + VectorAt(args, token, plane, kv_head) * kDim;
    });
  }
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
  const dim3 grid(static_cast<unsigned>(CeilDiv(args.tokens, kTokens)),
                  static_cast<unsigned>(CeilDiv(args.heads + 2 * args.k.heads, kWarps)));
  cuda::ForHeadDim(args.k.head_dim, [&](auto dim) {
    cuda::ForElement(args.dtype, [&](auto element) {
      LaunchDependent(QuantizeKvKernel<decltype(element), decltype(dim)::value>, grid, kWarps * 32,
                      0, stream, args);
    });
  });
  CheckCudaLaunch("CudaQuantizeKv");
}

}  // namespace flatquant
