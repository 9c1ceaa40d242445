#include <algorithm>

#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"
#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/head_dim.cuh"
#include "flatquant/kernels/quantize_kv/cuda_head_transform.cuh"

// A CTA takes one head of 16 tokens at a time. Eight lanes share a token's vector while it is
// normed, rotated, quantized or rounded; the warps share out the columns of its product. In a
// decode step every head is at work at once, and the chain of one tile's instructions is the
// time that the step loses here.

namespace flatquant::cuda {
namespace {

constexpr int kThreads = kHeadWarps * 32;
constexpr int kCtas = 3;  // of a multiprocessor: as registers hold transforms

// Where a token's vectors stand in the caches.
struct Place {
  int32_t slot = 0;
  int32_t position = 0;

  __device__ Place(const CudaQuantizeKvArgs& args, int token) {
    if (token >= args.tokens) return;
    slot = args.slots[token];
    position = args.positions[token];
  }
};

// A lane's part of a position's angles.
template <int kDim>
struct Angles {
  static constexpr int kEach = VectorPart<kDim>::kEach;

  alignas(16) float cos[kEach];
  alignas(16) float sin[kEach];

  __device__ void Load(const CudaQuantizeKvArgs& args, int32_t position) {
    const int64_t from = position * int64_t{kDim / 2} + VectorPart<kDim>::At(0);
#pragma unroll
    for (int i = 0; i < kEach; i += 4) {
      reinterpret_cast<float4&>(cos[i]) =
          __ldg(reinterpret_cast<const float4*>(args.cos + from + i));
      reinterpret_cast<float4&>(sin[i]) =
          __ldg(reinterpret_cast<const float4*>(args.sin + from + i));
    }
  }
};

// blockIdx.y: a head of Q, K or V, in this order; blockIdx.x: the first 16 of its tokens, others
// follow at the grid's distance.
template <typename T, int kDim>
__global__ void __launch_bounds__(kThreads, kCtas)
    MmaKernel(const __grid_constant__ CudaQuantizeKvArgs args) {
  using Part = VectorPart<kDim>;
  __shared__ HeadProduct<kDim> shared;
  LetSuccessorStart();
  const bool is_query = blockIdx.y < args.heads;
  const bool is_key = !is_query && blockIdx.y < args.heads + args.k.heads;
  const bool is_value = !is_query && !is_key;
  const CudaKvPlane& plane = is_key ? args.k : args.v;
  const KronClip clip = is_key ? args.k_clip : args.v_clip;
  const int head =
      static_cast<int>(blockIdx.y - (is_query ? 0 : args.heads) - (is_value ? args.k.heads : 0));
  const bool rotates = !is_value && args.cos != nullptr;
  const void* norm = is_query ? args.q_norm : is_key ? args.k_norm : nullptr;
  const void* transform = is_query ? args.q_transform : is_key ? args.k_transform : nullptr;
  const int row = threadIdx.x / kVectorLanes;
  const int step = gridDim.x * kHeadTokens;
  const auto load = [&](int token) {
    typename Part::Bits bits = {};
    if (token < args.tokens) {
      bits = Part::LoadBits(static_cast<const T*>(args.qkv) + int64_t{token} * args.qkv_stride +
                            blockIdx.y * kDim);
    }
    return bits;
  };

  // What is not the predecessor's work: all but the vectors.
  HeadColumns<kDim> columns;
  if (transform != nullptr) columns.Load(static_cast<const uint4*>(transform));
  int token = blockIdx.x * kHeadTokens + row;
  Place place(args, token);
  Angles<kDim> angles;
  if (rotates) angles.Load(args, place.position);
  typename Part::Bits bits = {};
  // A first pass, for no tokens, brings the instructions into the caches, out of which the
  // kernels before have pushed them; until its turn comes the CTA has the time.
  for (bool is_turn = false;;) {
    Part x = Part::template FromBits<T>(bits);
    if (norm != nullptr) x.template Norm<T>(norm, args.norm_eps);
    if (rotates) x.Rotate(angles.cos, angles.sin);
    // The next tokens' loads are on their way while these are multiplied and coded.
    const int next = token + step;
    const bool continues = is_turn && next - row < args.tokens;
    Place next_place = place;
    if (continues) {
      bits = load(next);
      next_place = Place(args, next);
    }
    if (transform != nullptr) {
      shared.template Put<T>(row, x);
      __syncthreads();
      columns.template Multiply<T>(shared);
      __syncthreads();
      x = shared.Get(row);
    }
    if (continues && rotates) angles.Load(args, next_place.position);
    const bool stores = is_turn && token < args.tokens;
    const int64_t vector = VectorAt(plane, place.slot, head, place.position);
    if (is_query) {
      if (stores) {
        x.template Store<T>(static_cast<T*>(args.q) + (token * args.heads + head) * kDim);
      }
    } else if (plane.packed()) {
      x.Quantize(plane, clip, vector, stores);
    } else if (stores) {
      x.template Store<T>(reinterpret_cast<T*>(plane.data) + vector * kDim);
    }
    if (!is_turn) {
      WaitForPredecessor();
      bits = load(token);
      is_turn = true;
    } else if (continues) {
      token = next;
      place = next_place;
    } else {
      return;
    }
  }
}

template <typename T, int kDim>
void Launch(const CudaQuantizeKvArgs& args, CudaStream stream) {
  // A wave of CTAs. Where they get more tokens than this, reading the transform once more costs
  // less than uneven ends.
  constexpr int64_t kMostTiles = 12;
  const int64_t heads = args.heads + 2 * args.k.heads;
  const int64_t tiles = CeilDiv(args.tokens, kHeadTokens);
  const int64_t wave = std::max<int64_t>(1, CurrentCudaDevice().sm_count * kCtas / heads);
  const dim3 grid(
      static_cast<unsigned>(std::min(tiles, std::max(wave, CeilDiv(tiles, kMostTiles)))),
      static_cast<unsigned>(heads));
  LaunchDependent(MmaKernel<T, kDim>, grid, kThreads, 0, stream, args);
}

}  // namespace

void QuantizeKvMma(const CudaQuantizeKvArgs& args, CudaStream stream) {
  ForHeadDim(args.k.head_dim, [&](auto dim) {
    ForElement(args.dtype, [&](auto element) {
      Launch<decltype(element), decltype(dim)::value>(args, stream);
    });
  });
}

}  // namespace flatquant::cuda
