#include "flatquant/kernels/attention/cuda_prefill.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/nibble_float.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/cuda/wgmma.cuh"

// Many tokens of a sequence on Hopper: blocked attention with an online softmax by wgmma. A
// CTA takes 128 tokens of one query head, 64 for each of two multiplying warpgroups. A
// third one brings K and V, 128 positions at a time, into shared memory in 16 bits: by
// asynchronous copies, or widening packed ones on the way to q - zero (exact in 16 bits);
// then K's scale multiplies scores, V's the weights. While the tensor cores compute a
// block's scores and then the values of the block before, the softmax of those scores
// runs beside the latter, and beside the other warpgroup's products.

namespace flatquant::cuda {
namespace {

constexpr int kGroupTokens = 64;
constexpr int kTokens = 2 * kGroupTokens;
constexpr int kBlock = 128;  // positions
constexpr int kStages = 2;
constexpr int kThreads = 384;  // loading warpgroup, two multiplying ones
// Of the 504 registers that three warpgroups share per lane: what widening needs, and what
// 64 sums, 64 scores, 32 packed weights and addresses need.
constexpr int kLoadRegisters = 88;
constexpr int kMultiplyRegisters = 208;
constexpr float kLog2E = 1.4426950408889634f;

// Where things lie in shared memory. Matrices are panels of 64 elements (128 swizzled
// bytes) per row.
template <int kDim>
struct Layout {
  static constexpr int kPanel = kBlock * 128;  // of K and V
  static constexpr int kPlaneBytes = kBlock * kDim * 2;
  static constexpr int kQueryPanel = kGroupTokens * 128;
  static constexpr int kQueryBytes = kGroupTokens * kDim * 2;
  static constexpr int kScales = 2 * kQueryBytes + 2 * kStages * kPlaneBytes;
  static constexpr int kBarriers = kScales + 2 * kStages * kBlock * 4;
  static constexpr int kSharedBytes = 1024 + kBarriers + 4 * kStages * 8;

  uint32_t base;

  __device__ uint32_t Query(int group) const { return base + group * kQueryBytes; }
  // plane: 0 for K, 1 for V
  __device__ uint32_t Plane(int plane, int stage) const {
    return base + 2 * kQueryBytes + (plane * kStages + stage) * kPlaneBytes;
  }
  __device__ uint32_t Scale(int plane, int stage) const {
    return base + kScales + (plane * kStages + stage) * kBlock * 4;
  }
  __device__ uint32_t Full(int plane, int stage) const {
    return base + kBarriers + (plane * kStages + stage) * 8;
  }
  __device__ uint32_t Empty(int plane, int stage) const {
    return Full(plane, stage) + 2 * kStages * 8;
  }
};

__device__ uint32_t PanelOffset(int panel_bytes, int row, int chunk) {
  return chunk / 8 * panel_bytes + row * 128 + ((chunk % 8 ^ row % 8) << 4);
}

__device__ float2 LoadSharedFloat2(uint32_t from) {
  float2 x;
  asm volatile("ld.shared.v2.f32 {%0,%1}, [%2];" : "=f"(x.x), "=f"(x.y) : "r"(from) : "memory");
  return x;
}

// A position in a plane's ring of stages.
__device__ int Stage(int block) { return block % kStages; }
__device__ uint32_t Parity(int block) { return block / kStages % 2; }

// The loading warpgroup's side of one plane: Request(i) starts a block's way, Deliver(i)
// ends it. Elements of a packed plane stand, within eight, in the order 0 4 1 5 2 6 3 7,
// which is how nibbles widen.
template <typename T, int kDim>
struct Feed {
  static constexpr int kRowChunks = kDim / 32;  // of 32 nibbles
  static constexpr int kChunks = kBlock * kRowChunks / 128;
  static constexpr int kRowStep = 128 / kRowChunks;  // rows between a thread's chunks

  const CudaKvPlane& plane;
  Layout<kDim> layout;
  int which;  // 0 for K, 1 for V
  int64_t base;
  int begin, end;
  float factor;  // what scales are multiplied by
  uint4 chunk[kChunks];
  uint32_t zero[kChunks];
  float scale;

  // Eight lanes take eight rows, whose swizzled chunks lie in different banks.
  __device__ int Row(int j) const {
    return threadIdx.x % 8 + threadIdx.x / (8 * kRowChunks) * 8 + j * kRowStep;
  }
  __device__ int Chunk() const { return threadIdx.x / 8 % kRowChunks; }

  __device__ void Request(int i) {
    const int first = begin + i * kBlock;
    if (first < end) {
      if (plane.packed()) {
        Load(first);
      } else {
        BarrierWait(layout.Empty(which, Stage(i)), Parity(i) ^ 1);
        Copy(first, layout.Plane(which, Stage(i)));
      }
    }
    CopyAsyncCommit();  // also when empty, so that groups count blocks
  }

  __device__ void Deliver(int i) {
    if (plane.packed()) {
      BarrierWait(layout.Empty(which, Stage(i)), Parity(i) ^ 1);
      Widen(layout.Plane(which, Stage(i)));
      asm volatile("st.shared.f32 [%0], %1;" ::"r"(layout.Scale(which, Stage(i)) + threadIdx.x * 4),
                   "f"(scale)
                   : "memory");
    } else {
      CopyAsyncWait<1>();  // the other plane's request is younger
    }
    FenceAsyncProxy();
    BarrierArrive(layout.Full(which, Stage(i)));
  }

  // Positions past the end are read at the last one; scores mask them.
  __device__ void Load(int first) {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const int64_t at = base + min(first + Row(j), end - 1);
      chunk[j] = __ldg(reinterpret_cast<const uint4*>(plane.data + at * (kDim / 2)) + Chunk());
      zero[j] = plane.zero[at];
    }
    const int64_t at = base + min(first + static_cast<int>(threadIdx.x), end - 1);
    scale = Bf16ToFloat(plane.scale[at]) * factor;
  }

  __device__ void Widen(uint32_t to) const {
#pragma unroll
    for (int j = 0; j < kChunks; ++j) {
      const uint32_t words[4] = {chunk[j].x, chunk[j].y, chunk[j].z, chunk[j].w};
      const auto zeros = NibbleFloat<T>::MakeZeros(zero[j], zero[j]);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
        uint32_t pairs[4];
        NibbleFloat<T>::Widen(words[w], zeros, pairs);
        StoreShared(to + PanelOffset(Layout<kDim>::kPanel, Row(j), 4 * Chunk() + w),
                    make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]));
      }
    }
  }

  // Zeros past the end: memory there may hold no numbers.
  __device__ void Copy(int first, uint32_t to) const {
    constexpr int kWideChunks = kDim / 8;
    const uint8_t* from = plane.data + (base + first) * (kDim * 2);
#pragma unroll
    for (int i = threadIdx.x; i < kBlock * kWideChunks; i += 128) {
      const int row = i / kWideChunks;
      const bool inside = first + row < end;
      CopyAsync16(to + PanelOffset(Layout<kDim>::kPanel, row, i % kWideChunks),
                  inside ? from + i * 16 : plane.data, inside ? 16 : 0);
    }
  }
};

// A multiplying warpgroup's 64 tokens. As wgmma lays them out, this thread has of rows
// r = 16 warp + lane / 4 and r + 8 the columns 8 j + 2 c + {0, 1}: number 4 j + 2 h + i.
template <typename T, typename V, int kDim>
struct Group {
  static constexpr int kSums = kDim / 2;
  static constexpr int kScores = kBlock / 2;
  float y[kSums];
  float score[kScores];
  uint32_t weight[kScores / 2];
  float top[2] = {-INFINITY, -INFINITY};  // largest score, before `factor`
  float sum[2] = {0, 0};                  // of this lane's columns
  float shrink[2];                        // what the newest top makes of older sums

  __device__ void MultiplyKeys(uint32_t query, uint32_t k) {
    WgmmaFence();
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
      Wgmma16<T, kBlock>::Run(
          score, SwizzledOperand(query + s / 4 * Layout<kDim>::kQueryPanel + s % 4 * 32),
          SwizzledOperand(k + s / 4 * Layout<kDim>::kPanel + s % 4 * 32), s > 0);
    }
    WgmmaCommit();
  }

  __device__ void MultiplyValues(uint32_t v) {
    WgmmaFence();
#pragma unroll
    for (int u = 0; u < kBlock / 16; ++u) {
      const uint32_t* a = weight + 4 * u;
      Wgmma16Transposed<V, kDim>::Run(y, a[0], a[1], a[2], a[3],
                                      TransposedOperand(v + u * 16 * 128, Layout<kDim>::kPanel),
                                      true);
    }
    WgmmaCommit();
  }

  __device__ void PinScores() {
#pragma unroll
    for (int i = 0; i < kScores; ++i) WgmmaPin(score[i]);
  }
  __device__ void PinSums() {
#pragma unroll
    for (int i = 0; i < kSums; ++i) WgmmaPin(y[i]);
  }

  __device__ void ScaleScores(uint32_t scales) {
#pragma unroll
    for (int j = 0; j < kBlock / 8; ++j) {
      const float2 scale = LoadSharedFloat2(scales + (8 * j + threadIdx.x % 4 * 2) * 4);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        score[4 * j + 2 * h] *= scale.x;
        score[4 * j + 2 * h + 1] *= scale.y;
      }
    }
  }

  // distance: from the block's first position to that of row r.
  __device__ void Mask(int distance, int window) {
#pragma unroll
    for (int i = 0; i < kScores; ++i) {
      const int seen = distance + i / 2 % 2 * 8 - (i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2);
      if (seen < 0 || (window > 0 && seen >= window)) score[i] = -INFINITY;
    }
  }

  // Scores become weights 2^(factor (score - top)).
  __device__ void Softmax(float factor) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float new_top = top[h];
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
        new_top = fmaxf(new_top, fmaxf(score[4 * j + 2 * h], score[4 * j + 2 * h + 1]));
      }
      new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 1));
      new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 2));
      const float base = new_top == -INFINITY ? 0.0f : new_top;  // a row that sees nothing yet
      shrink[h] = Exp2((top[h] - base) * factor);
      top[h] = new_top;
      float added = 0;
#pragma unroll
      for (int j = 0; j < kBlock / 8; ++j) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& s = score[4 * j + 2 * h + i];
          s = Exp2(fmaf(s, factor, -base * factor));
          added += s;
        }
      }
      sum[h] = sum[h] * shrink[h] + added;
    }
  }

  __device__ void ShrinkSums() {
    // Soon the top no longer grows.
    if (!__any_sync(~0u, shrink[0] != 1.0f || shrink[1] != 1.0f)) return;
#pragma unroll
    for (int i = 0; i < kSums; ++i) y[i] *= shrink[i / 2 % 2];
    PinSums();
  }

  // scales: V's, 0 for none. Weights of columns 2 c, 2 c + 1 and 8 further, rows r, r + 8.
  __device__ void PackWeights(uint32_t scales) {
#pragma unroll
    for (int j = 0; j < kBlock / 8; ++j) {
      float2 scale = make_float2(1.0f, 1.0f);
      if (scales != 0) scale = LoadSharedFloat2(scales + (8 * j + threadIdx.x % 4 * 2) * 4);
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        weight[2 * j + h] =
            Element<V>::Pack(score[4 * j + 2 * h] * scale.x, score[4 * j + 2 * h + 1] * scale.y);
        WgmmaPin(weight[2 * j + h]);
      }
    }
  }
};

// This warpgroup's rows of Q to shared memory, in K's order of elements.
template <typename T, int kDim>
__device__ void LoadQuery(const CudaAttentionArgs& args, const PrefillTile& tile, int head,
                          int group, uint32_t to) {
  constexpr int kChunks = kDim / 8;
  const bool packed = args.k.packed();
#pragma unroll
  for (int i = threadIdx.x % 128; i < kGroupTokens * kChunks; i += 128) {
    const int row = i / kChunks;
    const int token = group * kGroupTokens + row;
    uint4 x = {};
    if (token < tile.tokens) {
      const int64_t vector = (tile.row0 + token) * args.heads + head;
      x = __ldg(reinterpret_cast<const uint4*>(static_cast<const T*>(args.q) + vector * kDim) +
                i % kChunks);
    }
    if (packed) {
      x = make_uint4(__byte_perm(x.x, x.z, 0x5410), __byte_perm(x.x, x.z, 0x7632),
                     __byte_perm(x.y, x.w, 0x5410), __byte_perm(x.y, x.w, 0x7632));
    }
    StoreShared(to + PanelOffset(Layout<kDim>::kQueryPanel, row, i % kChunks), x);
  }
  FenceAsyncProxy();
}

// Sums over the weights' sums, through shared memory that is free by now, so that 16 bytes
// are written at a time.
template <typename T, typename V, int kDim>
__device__ void StoreOutput(const CudaAttentionArgs& args, const PrefillTile& tile, int head,
                            int group, uint32_t staging, const Group<T, V, kDim>& state) {
  const int lane = threadIdx.x % 32;
  const int c = lane % 4;
  const bool packed = args.v.packed();
  const int barrier = 1 + group;
  NamedBarrier(barrier, 128);  // all products of this warpgroup have read Q
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = state.sum[h];
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    const float factor = 1.0f / sum;
    const int row = threadIdx.x % 128 / 32 * 16 + lane / 4 + 8 * h;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const uint32_t pair =
          Element<T>::Pack(state.y[4 * j + 2 * h] * factor, state.y[4 * j + 2 * h + 1] * factor);
      const uint32_t chunk = staging + ChunkOffset<kDim>(row, j);
      if (packed) {
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(chunk + 2 * c),
                     "h"(static_cast<uint16_t>(pair))
                     : "memory");
        asm volatile("st.shared.b16 [%0], %1;" ::"r"(chunk + 2 * c + 8),
                     "h"(static_cast<uint16_t>(pair >> 16))
                     : "memory");
      } else {
        asm volatile("st.shared.b32 [%0], %1;" ::"r"(chunk + 4 * c), "r"(pair) : "memory");
      }
    }
  }
  NamedBarrier(barrier, 128);
  constexpr int kChunks = kDim / 8;
#pragma unroll
  for (int i = threadIdx.x % 128; i < kGroupTokens * kChunks; i += 128) {
    const int row = i / kChunks;
    const int token = group * kGroupTokens + row;
    if (token >= tile.tokens) continue;
    const int64_t vector = (tile.row0 + token) * args.heads + head;
    reinterpret_cast<uint4*>(static_cast<T*>(args.y) + vector * kDim)[i % kChunks] =
        LoadShared(staging + ChunkOffset<kDim>(row, i % kChunks));
  }
}

template <typename T, typename V, int kDim>
__device__ __forceinline__ void Attend(const CudaAttentionArgs& args, const PrefillTile& tile,
                                       const Layout<kDim>& layout, int head, int begin, int end) {
  const int group = threadIdx.x / 128 - 1;
  const int lane = threadIdx.x % 32;
  const int window = static_cast<int>(args.window);
  const uint32_t query = layout.Query(group);
  const int position0 = tile.position0 + group * kGroupTokens;  // of row 0
  const int row = threadIdx.x % 128 / 32 * 16 + lane / 4;
  const bool scales_k = args.k.packed();
  const float factor = scales_k ? 1.0f : args.scale * kLog2E;
  const int blocks = (end - begin + kBlock - 1) / kBlock;
  const auto release = [&](int plane, int i) {
    __syncwarp();
    if (lane == 0) BarrierArrive(layout.Empty(plane, Stage(i)));
  };

  LoadQuery<T, kDim>(args, tile, head, group, query);
  NamedBarrier(1 + group, 128);
  Group<T, V, kDim> state;
#pragma unroll
  for (int i = 0; i < kDim / 2; ++i) state.y[i] = 0;
  const auto weigh = [&](int i) {  // block i's scores have been computed
    state.PinScores();
    if (scales_k) state.ScaleScores(layout.Scale(0, Stage(i)));
    release(0, i);
    const int first = begin + i * kBlock;
    if (first + kBlock > position0 + 1 ||
        (window > 0 && first <= position0 + kGroupTokens - 1 - window)) {
      state.Mask(position0 + row - first, window);
    }
    state.Softmax(factor);
  };
  const auto pack = [&](int i) {
    BarrierWait(layout.Full(1, Stage(i)), Parity(i));
    state.PackWeights(args.v.packed() ? layout.Scale(1, Stage(i)) : 0);
  };

  BarrierWait(layout.Full(0, 0), 0);
  state.MultiplyKeys(query, layout.Plane(0, 0));
  WgmmaWait<0>();
  weigh(0);
  pack(0);
  for (int i = 1; i < blocks; ++i) {
    BarrierWait(layout.Full(0, Stage(i)), Parity(i));
    state.MultiplyKeys(query, layout.Plane(0, Stage(i)));
    state.MultiplyValues(layout.Plane(1, Stage(i - 1)));
    WgmmaWait<1>();
    weigh(i);
    WgmmaWait<0>();
    state.PinSums();
    state.PinScores();  // packed only now: the products have read the weights before
    release(1, i - 1);
    state.ShrinkSums();
    pack(i);
  }
  state.MultiplyValues(layout.Plane(1, Stage(blocks - 1)));
  WgmmaWait<0>();
  state.PinSums();
  StoreOutput<T, V, kDim>(args, tile, head, group, query, state);
}

template <typename T, typename V, int kDim>
__global__ void __launch_bounds__(kThreads, 1)
    PrefillKernel(const __grid_constant__ PrefillParams params) {
  extern __shared__ uint8_t shared[];
  const CudaAttentionArgs& args = params.args;
  const Layout<kDim> layout = {(SharedAddress(shared) + 1023) & ~1023u};
  if (threadIdx.x == 0) {
    for (int plane = 0; plane < 2; ++plane) {
      for (int i = 0; i < kStages; ++i) {
        BarrierInit(layout.Full(plane, i), 128);  // every loading thread
        BarrierInit(layout.Empty(plane, i), 8);   // every multiplying warp
      }
    }
    BarrierInitFence();
  }
  __syncthreads();
  const int head = blockIdx.x;
  const int kv_head = head / static_cast<int>(args.heads / args.k.heads);
  // A sequence's last tokens see most positions: they start first.
  const PrefillTile tile = TileAt(params, gridDim.y - 1 - blockIdx.y, kv_head, kTokens);
  const int window = static_cast<int>(args.window);
  const int begin = window > 0 ? max(0, tile.position0 - window + 1) / kBlock * kBlock : 0;
  const int end = tile.position0 + tile.tokens;
  if (threadIdx.x < 128) {
    LowerRegisters<kLoadRegisters>();
    Feed<T, kDim> k = {args.k, layout, 0, tile.base, begin, end, args.scale * kLog2E, {}, {}, 0};
    Feed<V, kDim> v = {args.v, layout, 1, tile.base, begin, end, 1.0f, {}, {}, 0};
    k.Request(0);
    v.Request(0);
    for (int i = 0; begin + i * kBlock < end; ++i) {
      k.Deliver(i);
      k.Request(i + 1);
      v.Deliver(i);
      v.Request(i + 1);
    }
  } else {
    RaiseRegisters<kMultiplyRegisters>();
    Attend<T, V, kDim>(args, tile, layout, head, begin, end);
  }
}

}  // namespace

void AttentionPrefillWgmma(const CudaAttentionPrefillArgs& args, CudaStream stream) {
  const PrefillParams params = MakePrefillParams(args, kTokens);
  if (params.tiles == 0) return;
  const dim3 grid(static_cast<unsigned>(args.heads), static_cast<unsigned>(params.tiles));
  ForHeadDim(args.k.head_dim, [&](auto dim) {
    ForPrefillElements(args, [&](auto element, auto value) {
      constexpr int kDim = decltype(dim)::value;
      const auto kernel = PrefillKernel<decltype(element), decltype(value), kDim>;
      AllowSharedMemory(kernel, Layout<kDim>::kSharedBytes);
      kernel<<<grid, kThreads, Layout<kDim>::kSharedBytes, stream>>>(params);
    });
  });
  CheckCudaLaunch("AttentionPrefillWgmma");
}

}  // namespace flatquant::cuda
