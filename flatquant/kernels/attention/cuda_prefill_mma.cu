#include "flatquant/kernels/attention/cuda_prefill.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/cuda/nibble_float.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"

// Many tokens of a sequence: blocked attention with an online softmax in registers. A
// CTA takes 64 tokens of one query head, 16 for each warp; two CTAs per multiprocessor
// cover each other's barriers. K and V lie in shared memory in 16 bits, 64 positions at a
// time. Packed ones are widened once per CTA to q - zero (exact in 16 bits); K's scale
// multiplies scores, V's the weights. The next block's bytes are on their way, packed in
// registers or by asynchronous copies, while this one is multiplied.

namespace flatquant::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kThreads = kWarps * 32;
constexpr int kTokens = kWarps * 16;
constexpr int kBlock = 64;  // positions
constexpr float kLog2E = 1.4426950408889634f;

// Two buffers of a block's K and V: swizzled rows of kDim 16-bit elements. Those of a
// packed plane stand, within eight, in the order 0 4 1 5 2 6 3 7, which is how nibbles widen.
template <int kDim>
struct Shared {
  uint8_t k[2][kBlock * kDim * 2];
  uint8_t v[2][kBlock * kDim * 2];
  float k_scale[2][kBlock];
  float v_scale[2][kBlock];
};

// Where the pair of elements (2 c, 2 c + 1) of such a row comes from, and how far apart.
struct PairOrder {
  int first, step;
  __device__ explicit PairOrder(bool packed)
      : first(packed ? threadIdx.x % 4 : threadIdx.x % 4 * 2), step(packed ? 4 : 1) {}
};

// How a block of one plane comes into shared memory: Request before the block in use is
// multiplied, Deliver after.
template <typename T, int kDim>
struct Feed {
  static constexpr int kChunksPerRow = kDim / 32;  // 32 nibbles each
  static constexpr int kChunks = kBlock * kChunksPerRow / kThreads;
  static constexpr int kRowStep = kThreads / kChunksPerRow;  // rows between a thread's chunks

  const CudaKvPlane& plane;
  int64_t base;
  int end;
  float factor;  // what scales are multiplied by
  uint4 chunk[kChunks];
  uint32_t zero[kChunks];
  float scale;

  __device__ Feed(const CudaKvPlane& plane, int64_t base, int end, float factor)
      : plane(plane), base(base), end(end), factor(factor), scale(factor) {}

  __device__ void Request(int first, uint8_t* to) {
    if (!plane.packed()) {
      Copy(first, to);
      return;
    }
    // Positions past the end are read at the last one; scores mask them.
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int row = threadIdx.x / kChunksPerRow + j * kRowStep;
      const int64_t at = base + min(first + row, end - 1);
      chunk[j] = __ldg(reinterpret_cast<const uint4*>(plane.data + at * (kDim / 2)) +
                       threadIdx.x % kChunksPerRow);
      zero[j] = plane.zero[at];
    }
    if (threadIdx.x < kBlock) {
      const int64_t at = base + min(first + static_cast<int>(threadIdx.x), end - 1);
      scale = Bf16ToFloat(plane.scale[at]) * factor;
    }
  }

  // Zeros past the end: memory there may hold no numbers.
  __device__ void Copy(int first, uint8_t* to) {
    constexpr int kRowChunks = kDim / 8;
    const uint32_t shared = SharedAddress(to);
    const uint8_t* from = plane.data + (base + first) * (kDim * 2);
#pragma unroll
    for (int i = threadIdx.x; i < kBlock * kRowChunks; i += kThreads) {
      const bool inside = first + i / kRowChunks < end;
      CopyAsync16(shared + ChunkOffset<kDim>(i / kRowChunks, i % kRowChunks),
                  inside ? from + i * 16 : plane.data, inside ? 16 : 0);
    }
    CopyAsyncCommit();  // what is not in a group is not waited for
  }

  __device__ void Deliver(uint8_t* to, float* scales) const {
    if (threadIdx.x < kBlock) scales[threadIdx.x] = scale;
    if (!plane.packed()) {
      CopyAsyncWait<0>();
      return;
    }
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int row = threadIdx.x / kChunksPerRow + j * kRowStep;
      const uint32_t words[4] = {chunk[j].x, chunk[j].y, chunk[j].z, chunk[j].w};
      const auto zeros = NibbleFloat<T>::MakeZeros(zero[j], zero[j]);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint32_t pairs[4];
        NibbleFloat<T>::Widen(words[w], zeros, pairs);
        const int to_chunk = threadIdx.x % kChunksPerRow * 4 + w;
        *reinterpret_cast<uint4*>(to + ChunkOffset<kDim>(row, to_chunk)) =
            make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
      }
    }
  }
};

// A warp's 16 tokens (rows g and g + 8 of its products).
template <typename T, typename V, int kDim>
struct Warp {
  uint32_t q[kDim / 16][4];
  float y[kDim / 8][4] = {};
  float top[2] = {-INFINITY, -INFINITY};
  float sum[2] = {0, 0};  // of this lane's columns

  static __device__ uint32_t Bits(T x) { return reinterpret_cast<const uint16_t&>(x); }

  __device__ void LoadQuery(const T* const (&rows)[2], PairOrder order) {
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const T* row = rows[i % 2];
        const int at = 16 * s + i / 2 * 8 + order.first;
        q[s][i] = row == nullptr ? 0 : Bits(row[at]) | Bits(row[at + order.step]) << 16;
      }
    }
  }

  __device__ void Scores(uint32_t k, float (&score)[kBlock / 8][4]) const {
    const uint32_t from = k + ByRows<kDim>(threadIdx.x % 32);
#pragma unroll
    for (int n = 0; n < kBlock / 16; ++n) {
#pragma unroll
      for (int s = 0; s < kDim / 16; ++s) {
        uint32_t b[4];
        LoadMatrix(b, (from ^ (s << 5)) + n * 16 * kDim * 2);
        Mma16<T>(score[2 * n], q[s], b[0], b[1]);
        Mma16<T>(score[2 * n + 1], q[s], b[2], b[3]);
      }
    }
  }

  // Scores become weights, relative to the new top; y and sum follow it.
  __device__ void Softmax(float (&score)[kBlock / 8][4]) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float new_top = top[h];
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
        new_top = fmaxf(new_top, fmaxf(score[j][2 * h], score[j][2 * h + 1]));
      }
      new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 1));
      new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 2));
      const float base = new_top == -INFINITY ? 0.0f : new_top;  // a row that sees nothing yet
      if (__any_sync(~0u, new_top != top[h])) {                  // soon it no longer grows
        const float shrink = Exp2(top[h] - base);
        sum[h] *= shrink;
#pragma unroll
        for (int j = 0; j < kDim / 8; ++j) {
          y[j][2 * h] *= shrink;
          y[j][2 * h + 1] *= shrink;
        }
      }
      top[h] = new_top;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = score[j][2 * h + i];
          s = Exp2(s - base);
          sum[h] += s;
        }
      }
    }
  }

  __device__ void Values(uint32_t v, const float* v_scale, const float (&weight)[kBlock / 8][4]) {
    const int c = threadIdx.x % 4;
    const uint32_t from = v + ByColumns<kDim>(threadIdx.x % 32);
#pragma unroll
    for (int u = 0; u < kBlock / 16; ++u) {
      uint32_t a[4];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float2 scale = *reinterpret_cast<const float2*>(v_scale + 16 * u + 8 * i + 2 * c);
        const float* w = weight[2 * u + i];
        a[2 * i] = Element<V>::Pack(w[0] * scale.x, w[1] * scale.y);
        a[2 * i + 1] = Element<V>::Pack(w[2] * scale.x, w[3] * scale.y);
      }
#pragma unroll
      for (int j = 0; j < kDim / 8; j += 2) {
        uint32_t b[4];
        LoadMatrixTransposed(b, (from ^ (j << 4)) + u * 16 * kDim * 2);
        Mma16<V>(y[j], a, b[0], b[1]);
        Mma16<V>(y[j + 1], a, b[2], b[3]);
      }
    }
  }
};

template <typename T, typename V, int kDim>
__global__ void __launch_bounds__(kThreads, 2)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared<kDim>& shared = *reinterpret_cast<Shared<kDim>*>(raw);
  const CudaAttentionArgs& args = params.args;
  const int lane = threadIdx.x % 32;
  const int c = lane % 4;
  const int head = blockIdx.x;
  const int kv_head = head / static_cast<int>(args.heads / args.k.heads);
  // A sequence's last tokens see most positions: they start first.
  const PrefillTile tile = TileAt(params, gridDim.y - 1 - blockIdx.y, kv_head, kTokens);
  const int position0 = tile.position0;
  const int window = static_cast<int>(args.window);
  const int begin = window > 0 ? max(0, position0 - window + 1) / kBlock * kBlock : 0;
  const int end = position0 + tile.tokens;

  const int row = threadIdx.x / 32 * 16 + lane / 4;  // and row + 8
  const T* query[2];
  for (int h = 0; h < 2; ++h) {
    const int64_t vector = (tile.row0 + row + 8 * h) * args.heads + head;
    query[h] = row + 8 * h < tile.tokens ? static_cast<const T*>(args.q) + vector * kDim : nullptr;
  }
  Warp<T, V, kDim> state;
  state.LoadQuery(query, PairOrder(args.k.packed()));

  Feed<T, kDim> k(args.k, tile.base, end, args.scale * kLog2E);
  Feed<V, kDim> v(args.v, tile.base, end, 1.0f);
  k.Request(begin, shared.k[0]);
  v.Request(begin, shared.v[0]);
  k.Deliver(shared.k[0], shared.k_scale[0]);
  v.Deliver(shared.v[0], shared.v_scale[0]);
  __syncthreads();
  int buffer = 0;
  for (int first = begin; first < end; first += kBlock, buffer ^= 1) {
    const bool has_next = first + kBlock < end;
    // The other buffer was last read before the barrier that ended the round before.
    if (has_next) {
      k.Request(first + kBlock, shared.k[buffer ^ 1]);
      v.Request(first + kBlock, shared.v[buffer ^ 1]);
    }
    float score[kBlock / 8][4] = {};
    state.Scores(SharedAddress(shared.k[buffer]), score);
    const bool whole = first + kBlock <= position0 + 1 &&
                       (window == 0 || first > position0 + kTokens - 1 - window);
#pragma unroll
    for (int j = 0; j < kBlock / 8; ++j) {
      const float2 k_scale =
          *reinterpret_cast<const float2*>(shared.k_scale[buffer] + 8 * j + 2 * c);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        score[j][i] *= i % 2 == 0 ? k_scale.x : k_scale.y;
      }
    }
    if (!whole) {
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int seen = position0 + row + i / 2 * 8 - (first + 8 * j + 2 * c + i % 2);
          if (seen < 0 || (window > 0 && seen >= window)) score[j][i] = -INFINITY;
        }
      }
    }
    state.Softmax(score);
    state.Values(SharedAddress(shared.v[buffer]), shared.v_scale[buffer], score);
    if (has_next) {
      k.Deliver(shared.k[buffer ^ 1], shared.k_scale[buffer ^ 1]);
      v.Deliver(shared.v[buffer ^ 1], shared.v_scale[buffer ^ 1]);
    }
    __syncthreads();
  }

  const PairOrder order(args.v.packed());
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = state.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (row + 8 * h >= tile.tokens) continue;
    const float factor = 1.0f / sum;
    T* y = static_cast<T*>(args.y) + ((tile.row0 + row + 8 * h) * args.heads + head) * kDim +
           order.first;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      y[8 * j] = Element<T>::FromFloat(state.y[j][2 * h] * factor);
      y[8 * j + order.step] = Element<T>::FromFloat(state.y[j][2 * h + 1] * factor);
    }
  }
}

}  // namespace

void AttentionPrefillMma(const CudaAttentionPrefillArgs& args, CudaStream stream) {
  const PrefillParams params = MakePrefillParams(args, kTokens);
  if (params.tiles == 0) return;
  const dim3 grid(static_cast<unsigned>(args.heads), static_cast<unsigned>(params.tiles));
  ForHeadDim(args.k.head_dim, [&](auto dim) {
    ForPrefillElements(args, [&](auto element, auto value) {
      constexpr int kDim = decltype(dim)::value;
      const auto kernel = PrefillKernel<decltype(element), decltype(value), kDim>;
      AllowSharedMemory(kernel, sizeof(Shared<kDim>));
      kernel<<<grid, kThreads, sizeof(Shared<kDim>), stream>>>(params);
    });
  });
  CheckCudaLaunch("AttentionPrefillMma");
}

}  // namespace flatquant::cuda
