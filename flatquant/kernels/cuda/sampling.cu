#include "flatquant/kernels/cuda/sampling.h"

#include "flatquant/base/error.h"
#include "flatquant/kernels/cuda/dependent_launch.cuh"
#include "flatquant/kernels/cuda/device.cuh"

// A CTA per row. Every cut (top_k, top_p, the draw itself) is the same question, "at
// which logit does a sum over the tokens in order reach this much?", answered by a
// radix descent: four passes with a histogram of eight bits each, nothing is sorted.

namespace flatquant {
namespace {

constexpr int kThreads = 1024;
constexpr float kUnit = 0x1p40f;  // the largest logit's weight

// Increases with the float, and is unsigned.
__device__ uint32_t KeyOf(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ float FloatOf(uint32_t key) {
  return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}

struct Row {
  const float* logits;
  int vocab;
  float top;
  float inverse_temperature;

  __device__ uint64_t Weight(float logit) const {
    return static_cast<uint64_t>(kUnit * expf((logit - top) * inverse_temperature));
  }
};

struct Sums {
  uint64_t count;
  uint64_t weight;
};

// Where a sum in order reaches what was wanted: among the tokens of this key; `above`
// sums up those before them.
struct Cut {
  uint32_t key;
  Sums above;
};

struct Shared {
  uint32_t count[256];
  unsigned long long weight[256];
  Cut cut;
  uint64_t best;
  int position;
};

template <bool kByWeight>
__device__ Cut Descend(const Row& row, uint64_t wanted, Shared& shared) {
  if (threadIdx.x == 0) shared.cut = {0, {0, 0}};
  for (int shift = 24; shift >= 0; shift -= 8) {
    if (threadIdx.x < 256) {
      shared.count[threadIdx.x] = 0;
      shared.weight[threadIdx.x] = 0;
    }
    __syncthreads();
    const uint32_t prefix = shared.cut.key;
    const uint32_t mask = shift == 24 ? 0 : ~0u << (shift + 8);
    for (int i = threadIdx.x; i < row.vocab; i += kThreads) {
      const uint32_t key = KeyOf(row.logits[i]);
      if ((key & mask) != prefix) continue;
      atomicAdd(&shared.count[key >> shift & 255], 1u);
      const uint64_t weight = row.Weight(row.logits[i]);
      if (weight > 0) atomicAdd(&shared.weight[key >> shift & 255], weight);
    }
    __syncthreads();
    if (threadIdx.x == 0) {
      Cut cut = shared.cut;
      int bin = 255;
      for (; bin > 0; --bin) {
        const Sums next = {cut.above.count + shared.count[bin],
                           cut.above.weight + shared.weight[bin]};
        if ((kByWeight ? next.weight : next.count) >= wanted) break;
        cut.above = next;
      }
      cut.key |= static_cast<uint32_t>(bin) << shift;
      shared.cut = cut;
    }
    __syncthreads();
  }
  const Cut cut = shared.cut;
  __syncthreads();
  return cut;
}

// The id of the rank-th token (from 0) of this key.
__device__ int FindByRank(const Row& row, uint32_t key, uint64_t rank, Shared& shared) {
  if (threadIdx.x == 0) shared.position = -1;
  __syncthreads();
  uint64_t before = 0;
  for (int base = 0; base < row.vocab; base += kThreads) {
    const int i = base + static_cast<int>(threadIdx.x);
    const bool matches = i < row.vocab && KeyOf(row.logits[i]) == key;
    const uint64_t here = static_cast<uint64_t>(__syncthreads_count(matches));
    if (before + here > rank) {
      // Few tokens are equal: each counts those in front of it.
      if (matches) {
        uint64_t order = before;
        for (int j = base; j < i; ++j) order += KeyOf(row.logits[j]) == key;
        if (order == rank) shared.position = i;
      }
      break;
    }
    before += here;
  }
  __syncthreads();
  return shared.position;
}

// The key of the largest logit in the upper half, its lowest id inverted in the lower;
// NaN counts as largest.
__device__ uint64_t Largest(const Row& row, Shared& shared) {
  if (threadIdx.x == 0) shared.best = 0;
  __syncthreads();
  uint64_t best = 0;
#pragma unroll 8  // so many loads are on their way together
  for (int i = threadIdx.x; i < row.vocab; i += kThreads) {
    const float x = row.logits[i];
    const uint32_t key = isnan(x) ? ~0u : KeyOf(x);
    const uint64_t candidate = uint64_t{key} << 32 | ~static_cast<uint32_t>(i);
    best = candidate > best ? candidate : best;
  }
  for (int step = 16; step > 0; step /= 2) {
    const uint64_t other = __shfl_xor_sync(~0u, best, step);
    best = other > best ? other : best;
  }
  if (threadIdx.x % 32 == 0) {
    atomicMax(reinterpret_cast<unsigned long long*>(&shared.best), best);
  }
  __syncthreads();
  return shared.best;
}

__global__ void __launch_bounds__(kThreads) SampleKernel(CudaSampleArgs args) {
  __shared__ Shared shared;
  cuda::LetSuccessorStart();
  cuda::WaitForPredecessor();
  Row row = {args.logits + blockIdx.x * args.vocab, static_cast<int>(args.vocab), 0,
             1.0f / args.temperature};
  const uint64_t best = Largest(row, shared);
  row.top = FloatOf(static_cast<uint32_t>(best >> 32));
  int token = static_cast<int>(~static_cast<uint32_t>(best));
  if (!isfinite(row.top)) {
    token = -1;
  } else if (args.temperature > 0) {
    // Everything is wanted at first: the sum over all tokens.
    const bool cuts_k = args.top_k > 0 && args.top_k < args.vocab;
    const uint64_t kept =
        cuts_k ? static_cast<uint64_t>(args.top_k) : static_cast<uint64_t>(args.vocab);
    Cut cut = Descend<false>(row, kept, shared);
    uint64_t total = cut.above.weight + (kept - cut.above.count) * row.Weight(FloatOf(cut.key));
    if (args.top_p < 1) {
      const uint64_t wanted =
          max(uint64_t{1},
              static_cast<uint64_t>(ceil(double{args.top_p} * static_cast<double>(total))));
      cut = Descend<true>(row, wanted, shared);
      const uint64_t each = max(uint64_t{1}, row.Weight(FloatOf(cut.key)));
      total = cut.above.weight + (wanted - cut.above.weight + each - 1) / each * each;
    }
    const uint64_t drawn = min(total - 1, static_cast<uint64_t>(double{args.uniform[blockIdx.x]} *
                                                                static_cast<double>(total)));
    cut = Descend<true>(row, drawn + 1, shared);
    const uint64_t each = max(uint64_t{1}, row.Weight(FloatOf(cut.key)));
    token = FindByRank(row, cut.key, (drawn - cut.above.weight) / each, shared);
  }
  if (threadIdx.x == 0) args.tokens[blockIdx.x] = token;
}

}  // namespace

void CudaSample(const CudaSampleArgs& args, CudaStream stream) {
  FLATQUANT_CHECK(args.vocab > 0 && args.vocab < int64_t{1} << 23);
  if (args.rows == 0) return;
  LaunchDependent(SampleKernel, static_cast<unsigned>(args.rows), kThreads, 0, stream, args);
  CheckCudaLaunch("CudaSample");
}

}  // namespace flatquant
