#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"
#include "flatquant/kernels/quantize_kv/cuda_head_rows.cuh"

// A prompt on Hopper: a warpgroup takes 64 tokens, a warp 16 of them, and one head after the
// other, whose vectors come while the one before is worked on. Tokens' angles and the heads'
// transform are in shared memory all the while; vectors pass from there through registers, as
// the first operand of wgmma and its result, into the cache.

namespace flatquant::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kTokens = kWarps * kHeadTokens;
constexpr int kCtas = 2;  // of a multiprocessor, as shared memory holds them

template <int kDim>
struct Shared {
  static constexpr int kPanelBytes = kDim * 128;

  // P^T, [kDim, kDim] along P's rows: panels of 64 of them, swizzled (SwizzledOperand).
  alignas(1024) uint8_t transform[kDim / 64 * kPanelBytes];
  // Rows as swizzle.cuh has them.
  uint8_t vectors[2][kWarps][kHeadTokens * kDim * 2];
  float cos[kWarps][kHeadTokens * kAngleStride<kDim>];
  float sin[kWarps][kHeadTokens * kAngleStride<kDim>];

  static constexpr size_t Bytes() { return sizeof(Shared) + 1024; }

  // All threads: from CudaPackHeadTransform's fragments (cuda_head_transform.cuh).
  __device__ void LoadTransform(const uint4* packed) {
    for (int i = threadIdx.x; i < kDim * kDim / 8; i += kThreads) {
      const uint4 fragment = __ldg(packed + i);
      const uint32_t words[4] = {fragment.x, fragment.y, fragment.z, fragment.w};
      const int lane = i % 32;
      const int column = i / kDim * 8 + lane / 4;
      const int row = i / 32 % (kDim / 32) * 32;
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint8_t* to = transform + row / 64 * kPanelBytes +
                      ChunkOffset<64>(column, row % 64 / 8 + w) + lane % 4 * 4;
        *reinterpret_cast<uint32_t*>(to) = words[w];
      }
    }
    FenceAsyncProxy();
  }
};

// v = v P, by the warpgroup, v rounded to T.
template <typename T, int kDim>
__device__ void Transform(uint32_t transform, Vectors<kDim>& v) {
  uint32_t a[kDim / 16][4];
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float* pair = v[2 * s + i / 2] + i % 2 * 2;
      a[s][i] = Element<T>::Pack(pair[0], pair[1]);
      WgmmaPin(a[s][i]);
    }
  }
  float d[kDim / 2];
  WgmmaFence();
#pragma unroll
  for (int s = 0; s < kDim / 16; ++s) {
    Wgmma16<T, kDim>::Run(
        d, a[s][0], a[s][1], a[s][2], a[s][3],
        SwizzledOperand(transform + s / 4 * Shared<kDim>::kPanelBytes + s % 4 * 32), s > 0);
  }
  WgmmaCommit();
  WgmmaWait<0>();
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) {
    WgmmaPin(d[i]);
    v[i / 4][i % 4] = d[i];
  }
}

enum class Kind { kQuery, kKey, kValue };

// blockIdx.x: 64 tokens; blockIdx.y: so many heads of Q, of K or of V, in this order.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kCtas)
    PromptKernel(const __grid_constant__ CudaQuantizeKvArgs args, int heads_of_cta) {
  extern __shared__ uint8_t memory[];
  auto& shared =
      *reinterpret_cast<Shared<kDim>*>(memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  LetSuccessorStart();
  const auto groups = [&](int64_t heads) { return CeilDiv(heads, heads_of_cta); };
  const int64_t q_groups = groups(args.heads);
  const int64_t kv_groups = groups(args.k.heads);
  const Kind kind = blockIdx.y < q_groups               ? Kind::kQuery
                    : blockIdx.y < q_groups + kv_groups ? Kind::kKey
                                                        : Kind::kValue;
  const int64_t group = blockIdx.y - (kind == Kind::kQuery ? 0
                                      : kind == Kind::kKey ? q_groups
                                                           : q_groups + kv_groups);
  const int64_t kind_heads = kind == Kind::kQuery ? args.heads : args.k.heads;
  const int64_t begin = group * heads_of_cta;
  const int64_t end = min(begin + heads_of_cta, kind_heads);
  const int64_t before = kind == Kind::kQuery ? 0
                         : kind == Kind::kKey ? args.heads
                                              : args.heads + args.k.heads;
  const bool rotates = kind != Kind::kValue && args.cos != nullptr;
  const void* norm = kind == Kind::kQuery ? args.q_norm
                     : kind == Kind::kKey ? args.k_norm
                                          : nullptr;
  const void* transform = kind == Kind::kQuery ? args.q_transform
                          : kind == Kind::kKey ? args.k_transform
                                               : nullptr;
  const CudaKvPlane& plane = kind == Kind::kKey ? args.k : args.v;
  const KronClip clip = kind == Kind::kKey ? args.k_clip : args.v_clip;
  const int warp = threadIdx.x / 32;
  const int64_t first = blockIdx.x * int64_t{kTokens} + warp * kHeadTokens;

  // What is not the predecessor's work: all but the vectors.
  if (rotates) RequestAngles<kDim>(args, first, shared.cos[warp], shared.sin[warp]);
  if (transform != nullptr) shared.LoadTransform(static_cast<const uint4*>(transform));
  Rows rows;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int64_t token = first + threadIdx.x % 32 / 4 + 8 * h;
    rows.any[h] = first + 8 * h < args.tokens;
    rows.inside[h] = token < args.tokens;
    rows.slot[h] = rows.inside[h] ? args.slots[token] : 0;
    rows.position[h] = rows.inside[h] ? args.positions[token] : 0;
  }
  __syncthreads();  // the transform is in place
  WaitForPredecessor();
  const auto request = [&](int64_t head) {
    if (head < end) {
      RequestVectors<T, kDim>(args, first, before + head, shared.vectors[(head - begin) % 2][warp]);
    }
    CopyAsyncCommit();  // also when empty, so that groups count heads
  };
  request(begin);
  request(begin + 1);
  for (int64_t head = begin; head < end; ++head) {
    uint8_t* vectors = shared.vectors[(head - begin) % 2][warp];
    CopyAsyncWait<1>();
    __syncwarp();  // the lanes' copies are visible to each other
    Vectors<kDim> v;
    Load<T, kDim>(vectors, v);
    if (norm != nullptr) Norm<T, kDim>(rows, norm, args.norm_eps, v);
    if (rotates) Rotate<kDim>(rows, shared.cos[warp], shared.sin[warp], v);
    if (transform != nullptr) Transform<T, kDim>(SharedAddress(shared.transform), v);
    if (kind == Kind::kQuery) {
      Store<T, kDim>(rows, first, args.tokens, v, vectors, [&](int64_t t) {
        return static_cast<T*>(args.q) + (t * args.heads + head) * kDim;
      });
    } else if (plane.packed()) {
      Quantize<kDim>(rows, plane, clip, head, v);
    } else {
      Store<T, kDim>(rows, first, args.tokens, v, vectors, [&](int64_t t) {
        return reinterpret_cast<T*>(plane.data) +
               VectorAt(plane, args.slots[t], head, args.positions[t]) * kDim;
      });
    }
    __syncwarp();  // all lanes are done with the vectors
    request(head + 2);
  }
}

template <typename T, int kDim>
void Launch(const CudaQuantizeKvArgs& args, CudaStream stream) {
  const int64_t tiles = CeilDiv(args.tokens, kTokens);
  const auto ctas = [&](int64_t heads) {
    return tiles * (CeilDiv(args.heads, heads) + 2 * CeilDiv(args.k.heads, heads));
  };
  // The heads that the busiest multiprocessor has, and for each CTA about one more to read the
  // transform.
  const auto time = [&](int64_t heads) {
    return CeilDiv(ctas(heads), CurrentCudaDevice().sm_count) * (heads + 1);
  };
  int heads_of_cta = 1;
  for (int heads = 2; heads <= 32; ++heads) {
    if (time(heads) < time(heads_of_cta)) heads_of_cta = heads;
  }
  const dim3 grid(static_cast<unsigned>(tiles), static_cast<unsigned>(ctas(heads_of_cta) / tiles));
  AllowSharedMemory(PromptKernel<T, kDim>, Shared<kDim>::Bytes());
  LaunchDependent(PromptKernel<T, kDim>, grid, kThreads, Shared<kDim>::Bytes(), stream, args,
                  heads_of_cta);
}

}  // namespace

void QuantizeKvWgmma(const CudaQuantizeKvArgs& args, CudaStream stream) {
  ForHeadDim(args.k.head_dim, [&](auto dim) {
    ForElement(args.dtype, [&](auto element) {
      Launch<decltype(element), decltype(dim)::value>(args, stream);
    });
  });
}

}  // namespace flatquant::cuda
