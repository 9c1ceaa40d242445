#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"

namespace flatquant {

// The integer linear layer:
//
//   y[m][r] = residual[m][r] + bias[r]
//             + act_scale[m] * weight_scale[r] * sum_c act[m][c] * weight[r][c]
//
// act: int8 holding integers of at most 8 bits, [tokens, cols]; weight: signed
// integers of 2..8 bits, [rows, cols]; the sum is exact in int32 as long as
// cols <= kGemmIntMaxCols (128 * 128 * 2^17 = 2^31).
//
// Weights come in the packed format's canonical bytes and are brought once into
// the layout that the chosen kernel wants.
inline constexpr int64_t kGemmIntMaxCols = (int64_t{1} << 17) - 1;

// Rows of act are padded with zeros to a multiple of this many bytes, so that a
// kernel may read whole vectors.
inline constexpr int64_t kGemmIntActAlign = 64;

// An odd number of cache lines: rows a multiple of 4096 bytes apart would all
// fall into the same few sets of the caches.
constexpr int64_t GemmIntActStride(int64_t cols) {
  const int64_t lines = (cols + kGemmIntActAlign - 1) / kGemmIntActAlign;
  return (lines | 1) * kGemmIntActAlign;
}

// Canonical weights, which somebody else owns, of any alignment.
struct GemmIntSource {
  int bits = 4;
  int64_t rows = 0;
  int64_t cols = 0;
  // bits 2..4: [rows, ceil(cols / 2)] two's complement nibbles, even column low;
  // bits 5..8: int8 [rows, cols].
  const std::byte* weight = nullptr;
  const std::byte* scale = nullptr;  // float [rows]
  const std::byte* bias = nullptr;   // float [rows], or nullptr
};

struct GemmIntKernel;

// Weights in a kernel's layout. Immutable once packed.
struct GemmIntWeights {
  int bits = 4;
  int64_t rows = 0;
  int64_t cols = 0;
  AlignedBuffer<uint8_t> data;
  AlignedBuffer<float> scale;  // [rows rounded up to 64]
  AlignedBuffer<float> bias;   // the same (zeros without a bias)
  const GemmIntKernel* kernel = nullptr;

  uint64_t bytes() const { return data.size() + (scale.size() + bias.size()) * sizeof(float); }
};

struct GemmIntArgs {
  const int8_t* act = nullptr;       // [tokens, act_stride], 64-byte aligned, zeros beyond cols
  int64_t act_stride = 0;            // bytes, GemmIntActStride(cols) or more of its kind
  const float* act_scale = nullptr;  // [tokens]
  int64_t tokens = 0;
  const GemmIntWeights* weights = nullptr;
  float* y = nullptr;               // [tokens, y_stride]
  int64_t y_stride = 0;             // elements, >= rows
  const float* residual = nullptr;  // [tokens, residual_stride], nullptr for none; may be y
  int64_t residual_stride = 0;      // elements, >= rows
  // act holds integers in [-2^(act_bits-1), 2^(act_bits-1)]. A kernel whose sums
  // pass through int16 widens them less often for few bits.
  int act_bits = 8;
};

// What an instruction set supplies.
struct GemmIntKernel {
  // Rows that are packed together; work is cut at multiples of it.
  int64_t row_block;
  size_t (*packed_bytes)(int bits, int64_t rows, int64_t cols) noexcept;
  // Packs rows [row_begin, row_end), row_begin a multiple of row_block, into
  // their place in `packed` (all rows' memory, zeroed beforehand).
  void (*pack)(const GemmIntSource& source, int64_t row_begin, int64_t row_end,
               uint8_t* packed) noexcept;
  // Computes y for tokens [m_begin, m_end) and rows [row_begin, row_end).
  void (*compute)(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
                  int64_t row_end) noexcept;
};

// Packs for the given kernel, or for the best one.
GemmIntWeights PackGemmInt(const GemmIntSource& source, ThreadPool& pool,
                           const GemmIntKernel* kernel = nullptr);

void GemmInt(const GemmIntArgs& args, ThreadPool& pool) noexcept;

// Several linears in one parallel region (q, k, v; gate, up). None may read what
// another writes.
void GemmInt(std::span<const GemmIntArgs> linears, ThreadPool& pool) noexcept;

}  // namespace flatquant
