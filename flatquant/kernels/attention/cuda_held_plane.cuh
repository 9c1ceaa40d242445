#pragma once

#include "flatquant/kernels/cuda/element.cuh"
#include "flatquant/kernels/cuda/swizzle.cuh"
#include "flatquant/kernels/cuda/tensor_core.cuh"
#include "flatquant/kernels/quantize_kv/cuda_quantize_kv.h"

// A warp's block of K or V in shared memory, as the cache holds it, and how it becomes
// the first operand of tensor-core products: K's positions are rows of S^T = K Q^T, V's
// elements rows of y^T = V^T P^T, the eight heads of a group columns. Both formats have the
// same members:
//
//   kIsPacked      codes: Q's operand is of half then, its elements of half 1 a sixteenth
//   kTiles         of 16 elements by 8 heads that AddValues sums up
//   Request        starts the asynchronous copies
//   Clear          after they have come: nothing at positions outside [begin, end) of the block
//                  will make a weight of 0 anything else
//   LoadQuery      a lane's operands of Q, q[step][half] pairs of elements, zeros if not inside;
//                  query: [kDim], 16-byte aligned, of any 16-bit type
//   Score          S^T times K's scales and a factor per head (2 c + i): score[m][2 h + i] of
//                  position 16 m + g + 8 h, head 2 c + i; query_sum: of a head's Q, times its
//                  factor
//   AddValues      y^T += V^T P^T for 16 positions, with V's scales; weights as scores
//   Output         of (m, h, i): y[m][2 h + i] when all have been added
//   OutputElement  of y[m][2 h + i]: which element of the vector it is
//
// The order of elements within the products is free as long as Q's is the same, so
// that a format takes the one that it reads best.
namespace flatquant::cuda {

inline __device__ void CopyToShared16(void* to, const void* from, int bytes) {
  CopyAsync16(SharedAddress(to), from, bytes);
}

template <int kWords>
__device__ void LoadWords(const uint8_t* from, uint32_t (&words)[kWords]) {
  if constexpr (kWords == 4) {
    const uint4 x = *reinterpret_cast<const uint4*>(from);
    words[0] = x.x, words[1] = x.y, words[2] = x.z, words[3] = x.w;
  } else if constexpr (kWords == 2) {
    const uint2 x = *reinterpret_cast<const uint2*>(from);
    words[0] = x.x, words[1] = x.y;
  } else {
    words[0] = *reinterpret_cast<const uint32_t*>(from);
  }
}

// The nibbles of a word as pairs of subnormal halves, which tensor cores take at full speed: nibble
// q in a half's lowest bits is q 2^-24 exactly, four bits higher it is 16 q 2^-24. Pair i has
// nibble i of either 16-bit half; odd pairs are the sixteenfold ones.
constexpr float kNibbleUnit = 0x1p24f;
__device__ inline void NibblePairs(uint32_t word, uint32_t (&pairs)[4]) {
#pragma unroll
  for (int i = 0; i < 4; i += 2, word >>= 8) {
    pairs[i] = word & 0x000f000fu;
    pairs[i + 1] = word & 0x00f000f0u;
  }
}

// Nibbles, scales and zero points, whose part is subtracted from the sums: with (q - zero) scale
// one sum less zero times another, sum(x q) - zero sum(x), takes fewer instructions than a
// difference for each code. Lane (g, c) reads elements [c kDim / 4, (c + 1) kDim / 4) of a K
// vector, word w, pair i holding nibbles i and i + 4, and elements
// [g kDim / 8, (g + 1) kDim / 8) of V vectors.
template <int kDim, int kPositions>
struct PackedPlane {
  static constexpr bool kIsPacked = true;
  static constexpr int kZeroTile = kDim / 16;  // of y: what zero points add, in all rows
  static constexpr int kTiles = kZeroTile + 1;
  static constexpr int kRow = kDim / 2;          // bytes of a vector
  static constexpr int kKeyWords = kDim / 32;    // a lane's share of a K vector
  static constexpr int kValueWords = kDim / 64;  // a lane's share of a V vector
  // Units whose inverses are normal numbers too.
  static constexpr uint32_t kFirstUnit = 1u << 23;
  static constexpr uint32_t kLargestUnit = 253u << 23;

  alignas(16) uint8_t data[kPositions * kRow];  // position p at Row(p)
  uint16_t scale[kPositions];                   // bfloat16
  uint8_t zero[kPositions];

  // Lanes that read together read positions 2 c of V, which would lie in one half of the
  // banks (a quarter for 64 elements): every other one changes places with its neighbour.
  static __device__ int Row(int p) { return p ^ (p >> (kDim == 128 ? 1 : 2) & 1); }

  // Vectors [at, at + kPositions); at is a multiple of 16. All are in the cache's memory;
  // those beyond `inside` may hold anything, which as codes is some finite number.
  __device__ void Request(const CudaKvPlane& plane, int64_t at, int /*inside*/) {
    // 32 lanes bring kRound positions at once; Row() leaves what lies above them alone, so that
    // every round is a constant away from the one before.
    constexpr int kChunks = kRow / 16;
    constexpr int kRound = 32 / kChunks;
    static_assert(kRound % 8 == 0);
    const int lane = threadIdx.x % 32;
    const uint32_t to = SharedAddress(data) + Row(lane / kChunks) * kRow + lane % kChunks * 16;
    const uint8_t* from = plane.data + at * kRow + lane * 16;
#pragma unroll
    for (int i = 0; i < kPositions / kRound; ++i) {
      CopyAsync16(to + i * kRound * kRow, from + i * kRound * kRow, 16);
    }
    constexpr int kScales = kPositions / 8;
    const bool is_scale = lane < kScales;
    if (lane < kScales + kPositions / 16) {
      const int i = (is_scale ? lane : lane - kScales) * 16;  // bytes
      CopyAsync16(
          SharedAddress(is_scale ? reinterpret_cast<uint8_t*>(scale) : zero) + i,
          (is_scale ? reinterpret_cast<const uint8_t*>(plane.scale + at) : plane.zero + at) + i,
          16);
    }
  }

  // All lanes of the warp; the block is not read before.
  __device__ void Clear(int begin, int end) {
    for (int p = threadIdx.x % 32; p < kPositions; p += 32) {
      if (p < begin || p >= end) scale[p] = 0;
    }
    __syncwarp();
  }

  // Elements i and i + 4 of eight are a pair, as nibbles of a word are.
  template <typename T>
  static __device__ void LoadQuery(const T* query, bool inside, uint32_t (&q)[kDim / 16][2]) {
    const uint4* from = reinterpret_cast<const uint4*>(query) + threadIdx.x % 4 * (kDim / 32);
#pragma unroll
    for (int w = 0; w < kDim / 32; ++w) {
      const uint4 x = inside ? from[w] : uint4{};
      q[2 * w][0] = __byte_perm(x.x, x.z, 0x5410);
      q[2 * w][1] = __byte_perm(x.x, x.z, 0x7632);
      q[2 * w + 1][0] = __byte_perm(x.y, x.w, 0x5410);
      q[2 * w + 1][1] = __byte_perm(x.y, x.w, 0x7632);
    }
  }
  static __device__ int OutputElement(int m, int h, int g) { return g * (kDim / 8) + 2 * m + h; }

  __device__ void Score(const uint32_t (&q)[kDim / 16][2], const float (&factor)[2],
                        const float (&query_sum)[2], float (&score)[kPositions / 16][4]) const {
    const int g = threadIdx.x % 32 / 4;
    const int c = threadIdx.x % 4;
    const float unit[2] = {factor[0] * kNibbleUnit, factor[1] * kNibbleUnit};
#pragma unroll
    for (int m = 0; m < kPositions / 16; ++m) {
      uint32_t key[2][kKeyWords];
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        LoadWords(data + Row(16 * m + 8 * h + g) * kRow + c * (kRow / 4), key[h]);
      }
#pragma unroll
      for (int w = 0; w < kKeyWords; ++w) {
        uint32_t pairs[2][4];
#pragma unroll
        for (int h = 0; h < 2; ++h) NibblePairs(key[h][w], pairs[h]);
#pragma unroll
        for (int s = 0; s < 2; ++s) {
          const uint32_t a[4] = {pairs[0][2 * s], pairs[1][2 * s], pairs[0][2 * s + 1],
                                 pairs[1][2 * s + 1]};
          Mma16<__half>(score[m], a, q[2 * w + s][0], q[2 * w + s][1]);
        }
      }
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const int position = 16 * m + 8 * h + g;
        const float minus_zero = -static_cast<float>(zero[position]);
        const float k_scale = Bf16ToFloat(scale[position]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          float& x = score[m][2 * h + i];
          x = k_scale * fmaf(minus_zero, query_sum[i], x * unit[i]);
        }
      }
    }
  }

  // Weights are at most 1; times V's scales they fit into half in a unit, a power of two, that
  // the largest scale so far is less than twice of. What is 2^24 times smaller is lost, as it
  // would be in the sum. `unit`: its bits as a float.
  __device__ float GrowUnit(uint32_t& unit) const {
    const uint32_t own = uint32_t{scale[threadIdx.x % kPositions]} << 16;
    const uint32_t largest = __reduce_max_sync(~0u, own) & 0x7f800000u;
    if (largest <= unit) return 1.0f;
    const uint32_t before = unit;
    unit = min(largest, kLargestUnit);
    return __uint_as_float((127u << 23) + before > unit ? (127u << 23) + before - unit : 0u);
  }

  __device__ void AddValues(int u, const float (&weight)[4], uint32_t unit,
                            float (&y)[kTiles][4]) const {
    const int g = threadIdx.x % 32 / 4;
    const float inverse = __uint_as_float((254u << 23) - unit);
    uint32_t p[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float v_scale = Bf16ToFloat(scale[16 * u + 8 * h + g]) * inverse;
      p[h] = TransposeMatrix(
          Element<__half>::Pack(weight[2 * h] * v_scale, weight[2 * h + 1] * v_scale));
    }
    const int first = 16 * u + threadIdx.x % 4 * 2;
    uint32_t value[4][kValueWords];  // of positions first + {0, 1, 8, 9}
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      LoadWords(data + Row(first + i / 2 * 8 + i % 2) * kRow + g * (kRow / 8), value[i]);
    }
#pragma unroll
    for (int w = 0; w < kValueWords; ++w) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Nibbles of two neighbouring positions side by side: pairs along the depth.
        const int select = half == 0 ? 0x5410 : 0x7632;
        uint32_t low[4];
        uint32_t high[4];
        NibblePairs(__byte_perm(value[0][w], value[1][w], select), low);
        NibblePairs(__byte_perm(value[2][w], value[3][w], select), high);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const uint32_t a[4] = {low[2 * i], low[2 * i + 1], high[2 * i], high[2 * i + 1]};
          Mma16<__half>(y[4 * w + 2 * half + i], a, p[0], p[1]);
        }
      }
    }
    const uint32_t low = zero[first] | uint32_t{zero[first + 1]} << 16;
    const uint32_t high = zero[first + 8] | uint32_t{zero[first + 9]} << 16;
    Mma16<__half>(y[kZeroTile], {low, low, high, high}, p[0], p[1]);
  }

  // Of y[m][2 h + i], h standing for the sixteenfold codes.
  static __device__ float Output(const float (&y)[kTiles][4], int m, int h, int i) {
    return (y[m][2 * h + i] * (h == 0 ? 1.0f : 0x1p-4f) - y[kZeroTile][i]) * kNibbleUnit;
  }
};

// 16-bit elements, swizzled.
template <typename T, int kDim, int kPositions>
struct WidePlane {
  static constexpr bool kIsPacked = false;
  static constexpr int kTiles = kDim / 16;
  static constexpr uint32_t kFirstUnit = 127u << 23;  // and last: 1

  alignas(256) uint8_t data[kPositions * kDim * 2];

  // Zeros beyond `inside`: what memory holds there may be no number, and a weight of 0
  // would not hide it.
  __device__ void Request(const CudaKvPlane& plane, int64_t at, int inside) {
    constexpr int kChunks = kDim / 8;
    const uint8_t* from = plane.data + at * (kDim * 2);
#pragma unroll
    for (int i = threadIdx.x % 32; i < kPositions * kChunks; i += 32) {
      CopyToShared16(data + ChunkOffset<kDim>(i / kChunks, i % kChunks), from + i * 16,
                     i / kChunks < inside ? 16 : 0);
    }
  }

  __device__ void Clear(int /*begin*/, int /*end*/) {}

  static __device__ void LoadQuery(const T* query, bool inside, uint32_t (&q)[kDim / 16][2]) {
    const uint32_t* from = reinterpret_cast<const uint32_t*>(query) + threadIdx.x % 4;
#pragma unroll
    for (int s = 0; s < kDim / 16; ++s) {
#pragma unroll
      for (int h = 0; h < 2; ++h) q[s][h] = inside ? from[8 * s + 4 * h] : 0;
    }
  }
  static __device__ int OutputElement(int m, int h, int g) { return 16 * m + 8 * h + g; }

  __device__ void Score(const uint32_t (&q)[kDim / 16][2], const float (&factor)[2],
                        const float (&)[2], float (&score)[kPositions / 16][4]) const {
    const uint32_t from = SharedAddress(data) + ByColumns<kDim>(threadIdx.x % 32);
#pragma unroll
    for (int m = 0; m < kPositions / 16; ++m) {
#pragma unroll
      for (int s = 0; s < kDim / 16; ++s) {
        uint32_t a[4];
        LoadMatrix(a, (from ^ (s << 5)) + m * 16 * kDim * 2);
        Mma16<T>(score[m], a, q[s][0], q[s][1]);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) score[m][i] *= factor[i % 2];
    }
  }

  __device__ float GrowUnit(uint32_t& /*unit*/) const { return 1.0f; }

  __device__ void AddValues(int u, const float (&weight)[4], uint32_t /*unit*/,
                            float (&y)[kTiles][4]) const {
    const uint32_t from = SharedAddress(data) + ByRows<kDim>(threadIdx.x % 32);
    uint32_t p[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      p[h] = TransposeMatrix(Element<T>::Pack(weight[2 * h], weight[2 * h + 1]));
    }
#pragma unroll
    for (int m = 0; m < kDim / 16; ++m) {
      uint32_t a[4];
      LoadMatrixTransposed(a, (from ^ (m << 5)) + u * 16 * kDim * 2);
      Mma16<T>(y[m], a, p[0], p[1]);
    }
  }

  static __device__ float Output(const float (&y)[kTiles][4], int m, int h, int i) {
    return y[m][2 * h + i];
  }
};

}  // namespace flatquant::cuda
