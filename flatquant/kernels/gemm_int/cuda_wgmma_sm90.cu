#include <algorithm>

#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/hopper.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/cuda/tensor_map.cuh"
#include "flatquant/kernels/gemm_int/cuda_kernels.h"
#include "flatquant/kernels/gemm_int/cuda_wgmma_chunk.cuh"
#include "flatquant/kernels/gemm_int/cuda_widen.cuh"

// Many tokens on Hopper: y^T = W X^T by INT8 wgmma. Weights are the operand that comes
// from registers, so their nibbles are widened between shared memory and the tensor
// core and never stored wide; activations come from shared memory. A CTA computes 128
// rows x 256 tokens, the largest tile whose int32 accumulators fit (two warpgroups,
// 128 registers each thread). Two CTAs form a cluster with different rows and the same
// tokens: each loads half of the activations for both, which halves what the larger
// operand asks of L2. One warp loads, eight multiply, CTAs walk over tiles.

namespace flatquant::cuda {
namespace {

constexpr int kRows = 128;    // of weights, per CTA
constexpr int kTokens = 256;  // per CTA
constexpr int kDepth = 128;   // columns per stage: one 128-byte swizzled row
constexpr int kActBytes = kTokens * kDepth;
constexpr int kStageBytes = kActBytes + kGemmIntTileBytes;
// Four stages of 40 KB beside 64 KB of output fill the 227 KB that a CTA may have.
constexpr int kStages = 4;
constexpr int kOutBytes = kRows * kTokens * 2;
constexpr int kBarrierBytes = 128;
constexpr int kSharedBytes = 1024 + kStages * kStageBytes + kOutBytes + kBarrierBytes;
constexpr int kThreads = 384;  // loading warpgroup, two multiplying ones
// Of the 504 registers that three warpgroups share per lane: what the loading one can
// do with, and what 128 accumulators, 32 operands and addresses need.
constexpr int kLoadRegisters = 40;
constexpr int kMultiplyRegisters = 232;
// Tiles are walked in bands of this many token tiles (2048 tokens), rows outermost, so
// that concurrent CTAs share weights and a band's activations stay in L2.
constexpr int kBand = 8;

struct Shape {
  int row_pairs;    // clusters along the rows: 256 rows each
  int token_tiles;  // 256 tokens each
  int chunks;       // stages along the columns, an even number
};

struct Tile {
  int row_pair;
  int token_tile;
};

__device__ Tile TileAt(const Shape& shape, int index) {
  const int band = index / (kBand * shape.row_pairs);
  const int width = min(kBand, shape.token_tiles - band * kBand);
  const int in_band = index - band * kBand * shape.row_pairs;
  return {in_band / width, band * kBand + in_band % width};
}

// Where things lie in shared memory.
struct Layout {
  uint32_t base;
  __device__ uint32_t Act(int stage) const { return base + stage * kActBytes; }
  __device__ uint32_t Weight(int stage) const {
    return base + kStages * kActBytes + stage * kGemmIntTileBytes;
  }
  // A warpgroup's 64 rows of output: [256 tokens][64 rows], swizzled.
  __device__ uint32_t Out(int group) const {
    return base + kStages * kStageBytes + group * (kOutBytes / 2);
  }
  __device__ uint32_t Barriers() const { return base + kStages * kStageBytes + kOutBytes; }
  __device__ uint32_t Full(int stage) const { return Barriers() + 8 * stage; }
  __device__ uint32_t Empty(int stage) const { return Barriers() + 8 * (kStages + stage); }
  __device__ uint32_t ResidualFull() const { return Barriers() + 8 * (2 * kStages); }
  __device__ uint32_t OutFree() const { return Barriers() + 8 * (2 * kStages + 1); }
};

// A ring position and the parity of its barriers.
struct Position {
  int stage = 0;
  uint32_t parity = 0;
  __device__ void Advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct Params {
  Shape shape;
  const uint8_t* weight;
  const float* weight_scale;
  const float* bias;
  const float* act_scale;
  int tokens;
  bool has_residual;
};

// One thread: fills stages for all tiles of this CTA.
__device__ void LoadStages(const Params& params, const CUtensorMap* act, Layout layout, int first,
                           int step, int tiles, uint32_t rank) {
  Position at;
  for (int t = first; t < tiles; t += step) {
    const Tile tile = TileAt(params.shape, t);
    const int64_t row_tile = 2 * tile.row_pair + rank;
    const uint8_t* weight = params.weight + row_tile * params.shape.chunks * kGemmIntTileBytes;
    for (int k = 0; k < params.shape.chunks; ++k, at.Advance()) {
      BarrierWait(layout.Empty(at.stage), at.parity ^ 1);
      BarrierExpect(layout.Full(at.stage), kStageBytes);
      TensorLoadMulticast(layout.Act(at.stage) + rank * (kActBytes / 2), act, k * kDepth,
                          tile.token_tile * kTokens + static_cast<int>(rank) * (kTokens / 2),
                          layout.Full(at.stage), 3);
      BulkLoad(layout.Weight(at.stage), weight + int64_t{k} * kGemmIntTileBytes, kGemmIntTileBytes,
               layout.Full(at.stage));
    }
  }
}

// One thread: brings each tile's residual to where its output will be made.
__device__ void LoadResiduals(const Params& params, const CUtensorMap* residual, Layout layout,
                              int first, int step, int tiles, uint32_t rank) {
  uint32_t parity = 1;  // the first tile's place is free
  for (int t = first; t < tiles; t += step, parity ^= 1) {
    const Tile tile = TileAt(params.shape, t);
    BarrierWait(layout.OutFree(), parity);
    BarrierExpect(layout.ResidualFull(), kOutBytes);
    for (int group = 0; group < 2; ++group) {
      TensorLoad(layout.Out(group), residual,
                 (2 * tile.row_pair + static_cast<int>(rank)) * kRows + 64 * group,
                 tile.token_tile * kTokens, layout.ResidualFull());
    }
  }
}

// Issues one stage's products; `a` is left in use until they complete.
__device__ __forceinline__ void MultiplyStage(Layout layout, const Position& at, int warp, int lane,
                                              uint32_t (&a)[16], int32_t (&acc)[128],
                                              bool accumulate) {
  const uint32_t packed = layout.Weight(at.stage) + warp * kGemmIntBlockBytes + lane * 16;
  MultiplyChunk<kTokens>(packed, layout.Act(at.stage), a, acc, accumulate);
}

// To both CTAs of the cluster, since the other one's copies come here too. Two lanes speak for
// their warp, whose other lanes have read weights from the stage too: those reads come before
// the arrival only by the warp's barrier.
__device__ void ReleaseStage(Layout layout, int stage, int lane, uint32_t rank) {
  __syncwarp();
  if (lane == 0) BarrierArrive(layout.Empty(stage));
  if (lane == 1) BarrierArriveRemote(layout.Empty(stage), rank ^ 1);
}

// Scales the accumulators and leaves them in shared memory as T [256 tokens][64 rows].
template <typename T>
__device__ __forceinline__ void StageOutput(const Params& params, uint32_t out, int token0,
                                            int row0, int warp, int lane, int32_t (&acc)[128]) {
  const int row = row0 + warp % 4 * 16 + lane / 4;
  const float scale0 = params.weight_scale[row] * kNibbleScale;
  const float scale1 = params.weight_scale[row + 8] * kNibbleScale;
  const float bias0 = params.bias == nullptr ? 0 : params.bias[row];
  const float bias1 = params.bias == nullptr ? 0 : params.bias[row + 8];
  const int in_matrix = lane % 8;
  const int matrix = lane / 8;
  const uint32_t chunk = (warp % 4 * 2 + matrix % 2) ^ in_matrix;
  const uint32_t address = out + (matrix / 2 * 8 + in_matrix) * 128 + chunk * 16;
#pragma unroll
  for (int j = 0; j < 32; j += 2) {
    uint32_t packed[4];
    uint32_t residual[4] = {};
    if (params.has_residual) LoadMatrixTransposed(residual, address + j * 1024);
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const int token = token0 + 8 * (j + i) + lane % 4 * 2;
      const float act0 = __ldg(params.act_scale + min(token, params.tokens - 1));
      const float act1 = __ldg(params.act_scale + min(token + 1, params.tokens - 1));
      const int32_t* d = acc + 4 * (j + i);
      float2 low = make_float2(static_cast<float>(d[0]) * (act0 * scale0) + bias0,
                               static_cast<float>(d[1]) * (act1 * scale0) + bias0);
      float2 high = make_float2(static_cast<float>(d[2]) * (act0 * scale1) + bias1,
                                static_cast<float>(d[3]) * (act1 * scale1) + bias1);
      if (params.has_residual) {
        const float2 r0 = Element<T>::ToFloat2(residual[2 * i]);
        const float2 r1 = Element<T>::ToFloat2(residual[2 * i + 1]);
        low = make_float2(low.x + r0.x, low.y + r0.y);
        high = make_float2(high.x + r1.x, high.y + r1.y);
      }
      packed[2 * i] = Element<T>::Pack(low.x, low.y);
      packed[2 * i + 1] = Element<T>::Pack(high.x, high.y);
    }
    StoreMatrixTransposed(address + j * 1024, packed[0], packed[1], packed[2], packed[3]);
  }
}

// A multiplying warpgroup: 64 rows of every tile of this CTA.
template <typename T>
__device__ __forceinline__ void Multiply(const Params& params, const CUtensorMap* y, Layout layout,
                                         int first, int step, int tiles, uint32_t rank) {
  const int warp = threadIdx.x / 32 - 4;
  const int lane = threadIdx.x % 32;
  const int group = warp / 4;
  const bool stores = threadIdx.x % 128 == 0;
  Position at;
  uint32_t residual_parity = 0;
  uint32_t a0[16];
  uint32_t a1[16];
  int32_t acc[128];
  for (int t = first; t < tiles; t += step) {
    const Tile tile = TileAt(params.shape, t);
    const int row0 = (2 * tile.row_pair + static_cast<int>(rank)) * kRows + 64 * group;
    const int token0 = tile.token_tile * kTokens;
    int previous = 0;
    const auto step_over = [&](uint32_t(&a)[16], int k) {
      BarrierWait(layout.Full(at.stage), at.parity);
      MultiplyStage(layout, at, warp, lane, a, acc, k > 0);
      WgmmaWait<1>();  // the stage before is done with its operands
      if (k > 0) ReleaseStage(layout, previous, lane, rank);
      previous = at.stage;
      at.Advance();
    };
    // In pairs without a condition between: operands alternate between two sets of
    // registers, and the compiler must see that a set in use is never written.
    for (int k = 0; k < params.shape.chunks; k += 2) {
      step_over(a0, k);
      if (k == 0 && stores && t != first) {
        TensorStoreWaitRead();
        BarrierArrive(layout.OutFree());
      }
      step_over(a1, k + 1);
    }
    WgmmaWait<0>();
#pragma unroll
    for (int i = 0; i < 128; ++i) WgmmaPin(acc[i]);
    ReleaseStage(layout, previous, lane, rank);
    if (params.has_residual) {
      BarrierWait(layout.ResidualFull(), residual_parity);
      residual_parity ^= 1;
    }
    NamedBarrier(1 + group, 128);  // the storing thread has seen the place free
    StageOutput<T>(params, layout.Out(group), token0, row0, warp, lane, acc);
    FenceAsyncProxy();
    NamedBarrier(1 + group, 128);
    if (stores) TensorStore(y, layout.Out(group), row0, token0);
  }
  if (stores) TensorStoreWaitRead();
}

template <typename T>
__global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(kThreads, 1)
    WgmmaKernel(const __grid_constant__ CUtensorMap act, const __grid_constant__ CUtensorMap y,
                const __grid_constant__ CUtensorMap residual, const Params params) {
  extern __shared__ uint8_t shared[];
  const Layout layout = {(SharedAddress(shared) + 1023) & ~1023u};
  const uint32_t rank = ClusterRank();
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(layout.Full(i), 1);
      BarrierInit(layout.Empty(i), 16);  // eight warps of each CTA of the cluster
    }
    BarrierInit(layout.ResidualFull(), 1);
    BarrierInit(layout.OutFree(), 2);  // both warpgroups
    BarrierInitFence();
  }
  ClusterSync();
  const int first = blockIdx.x / 2;
  const int step = gridDim.x / 2;
  const int tiles = params.shape.row_pairs * params.shape.token_tiles;
  if (threadIdx.x < 128) {
    LowerRegisters<kLoadRegisters>();
    if (threadIdx.x == 0) LoadStages(params, &act, layout, first, step, tiles, rank);
    if (threadIdx.x == 32 && params.has_residual) {
      LoadResiduals(params, &residual, layout, first, step, tiles, rank);
    }
    __syncwarp();
  } else {
    RaiseRegisters<kMultiplyRegisters>();
    Multiply<T>(params, &y, layout, first, step, tiles, rank);
  }
  ClusterSync();  // neither CTA leaves while the other may still reach into it
}

}  // namespace

void GemmIntWgmma(const CudaGemmIntArgs& args, CudaStream stream) {
  const Shape shape = {
      static_cast<int>(CudaGemmIntPaddedRows(args.weights.rows) / (2 * kRows)),
      static_cast<int>(CeilDiv(args.tokens, kTokens)),
      static_cast<int>(CudaGemmIntPaddedCols(args.weights.cols) / kDepth),
  };
  const CUtensorMap act = MakeTensorMap({args.act, CU_TENSOR_MAP_DATA_TYPE_UINT8, args.tokens,
                                         args.weights.cols, args.act_stride, kTokens / 2, kDepth});
  const CUtensorMapDataType type = args.dtype == DType::kF16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                                             : CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
  const auto out_map = [&](const void* data) {
    return MakeTensorMap(
        {data, type, args.tokens, args.weights.rows, args.y_stride * 2, kTokens, 64});
  };
  const CUtensorMap y = out_map(args.y);
  const CUtensorMap residual = out_map(args.residual == nullptr ? args.y : args.residual);
  const Params params = {
      shape,          args.weights.packed,           args.weights.scale,      args.weights.bias,
      args.act_scale, static_cast<int>(args.tokens), args.residual != nullptr};
  const int clusters =
      std::min(CurrentCudaDevice().sm_count / 2, shape.row_pairs * shape.token_tiles);
  ForElement(args.dtype, [&](auto element) {
    using T = decltype(element);
    AllowSharedMemory(WgmmaKernel<T>, kSharedBytes);
    WgmmaKernel<T><<<2 * clusters, kThreads, kSharedBytes, stream>>>(act, y, residual, params);
  });
  CheckCudaLaunch("GemmIntWgmma");
}

}  // namespace flatquant::cuda
