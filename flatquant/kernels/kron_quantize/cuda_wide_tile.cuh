#pragma once

#include "flatquant/kernels/kron_quantize/cuda_input.cuh"
#include "flatquant/kernels/kron_quantize/cuda_tile.cuh"

// The tile of cuda_wide_sm90.cu: how a token and its matrices lie in shared memory, how X comes
// there, and where a thread's results belong.
namespace flatquant::cuda {

// kHalves: R in units of 32, rounded up.
template <int kHalves>
struct WideTile {
  static constexpr int kColumns = 32 * kHalves;
  // Operands are panels of 64 elements: 128 bytes per row, swizzled.
  static constexpr int kPanels = (kHalves + 1) / 2;
  static constexpr int kRightPanel = kColumns * 128;
  static constexpr int kRightBytes = kPanels * kRightPanel;
  // As many as L <= R asks for; beyond R = 192 no more than two have room in shared memory.
  static constexpr int kMaxGroups = kHalves <= 2 ? 1 : kHalves == 5 || kHalves == 6 ? 3 : 2;
  static constexpr int kMaxThreads = 128 * kMaxGroups;
  // Sums and W take 24 registers per unit of 32: small ones leave room for more CTAs.
  static constexpr int kMinBlocks = kHalves <= 2 ? 4 : kHalves <= 4 ? 2 : 1;
  // Panels of W that are made before they are multiplied: all, but where three warpgroups leave
  // too few registers for it.
  static constexpr int kPart = kHalves == 6 ? 1 : kPanels;
  // Of 8 elements of X for each thread, at most: a row has 4 per unit of 32, two threads.
  static constexpr int kLoads = 2 * kHalves;
};

// How a transform's left matrix and X lie in shared memory, behind its right one.
struct WideShape {
  int rows;    // L
  int cols;    // R
  int groups;  // warpgroups, each of 64 rows of left^T
  int depth;   // L rounded up to what a turn of the first product takes
  __host__ __device__ explicit WideShape(const CudaKronTransform& transform)
      : rows(static_cast<int>(transform.left_size)),
        cols(static_cast<int>(transform.right_size)),
        groups((rows + 63) / 64),
        depth((rows + 31) / 32 * 32) {}
  __host__ __device__ int LeftPanel() const { return groups * 64 * 128; }
  __host__ __device__ int LeftBytes() const { return groups * LeftPanel(); }
  __host__ __device__ int XPanel() const { return depth * 128; }
};

template <int kHalves>
int64_t SharedBytes(const WideShape& shape) {
  using Tile = WideTile<kHalves>;
  return 1024 + Tile::kRightBytes + shape.LeftBytes() + Tile::kPanels * shape.XPanel();
}

// x, but for the compiler: what follows from it is computed where it is needed, token by token.
// Kept from one token to the next it would take registers that the products need.
__device__ __forceinline__ int Recomputed(int x) {
  asm volatile("" : "+r"(x));
  return x;
}

// Where a thread's next eight elements of X are. Row by row: R need not be a multiple of eight,
// so that a row's last ones may be fewer.
struct Piece {
  int row, chunk;
  __device__ Piece Again() const { return {Recomputed(row), Recomputed(chunk)}; }
  __device__ void Advance(const Piece& step, int chunks) {
    row += step.row;
    chunk += step.chunk;
    if (chunk >= chunks) {
      chunk -= chunks;
      ++row;
    }
  }
};

// Up to eight elements, `count` in memory, by loads of a Word: what R is a multiple of.
template <typename Word, typename T>
__device__ __forceinline__ uint4 LoadElements(const T* from, int count) {
  constexpr int kElements = sizeof(Word) / sizeof(T);
  alignas(16) Word words[8 / kElements];
#pragma unroll
  for (int i = 0; i < 8 / kElements; ++i) {
    words[i] = i * kElements < count ? __ldg(reinterpret_cast<const Word*>(from) + i) : Word{};
  }
  return *reinterpret_cast<const uint4*>(words);
}

// All of a thread's loads of a token, on their way together.
template <typename Word, typename T, int kLoads>
__device__ __forceinline__ void LoadToken(const SiteInput<T>& input, const WideShape& shape,
                                          Piece piece, const Piece& step, int chunks,
                                          typename SiteInput<T>::Loaded (&loaded)[kLoads]) {
#pragma unroll
  for (int i = 0; i < kLoads; ++i) {
    const int at = piece.row * shape.cols + piece.chunk * 8;
    const int count = piece.row < shape.rows ? shape.cols - piece.chunk * 8 : 0;
    loaded[i].x = LoadElements<Word>(input.x + at, count);
    loaded[i].other =
        LoadElements<Word>(input.other + at, input.kind == CudaSiteInput::kPlain ? 0 : count);
    piece.Advance(step, chunks);
  }
}

// kCount accumulators from the first-th on.
template <int kCount, int kAll>
__device__ __forceinline__ float (&Part(float (&all)[kAll], int first))[kCount] {
  return *reinterpret_cast<float(*)[kCount]>(all + first);
}

// Whether R has this thread's columns of the j-th eight. With 16 accumulators per unit of 32
// all units but the last are full, unless R is below 32.
template <int kHalves>
__device__ __forceinline__ bool HasColumns(int j, int cols) {
  return (kHalves > 2 && j < 4 * (kHalves - 1)) ||
         8 * j + 2 * static_cast<int>(threadIdx.x % 4) < cols;
}

// take(l * R + r, a, b) for the accumulators of Y[l][r] and Y[l][r + 1].
template <int kHalves, typename Take>
__device__ __forceinline__ void ForEachPair(const float (&acc)[16 * kHalves],
                                            const WideShape& shape, const Take& take) {
  const int row = threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
  const int index = Recomputed(row * shape.cols + 2 * static_cast<int>(threadIdx.x % 4));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    if (row + 8 * h >= shape.rows) break;
#pragma unroll
    for (int j = 0; j < 4 * kHalves; ++j) {
      if (!HasColumns<kHalves>(j, shape.cols)) continue;
      take(index + 8 * h * shape.cols + 8 * j, acc[4 * j + 2 * h], acc[4 * j + 2 * h + 1]);
    }
  }
}

// A token's codes are staged as they lie in memory, but for the place of 16 bytes within 128: rows
// of many an R begin in the same banks.
__device__ __forceinline__ int StagedAt(int code) { return code ^ (code >> 3 & 0x70); }

}  // namespace flatquant::cuda
