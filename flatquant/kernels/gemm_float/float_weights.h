#pragma once

#include <cstddef>
#include <cstdint>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/dtype.h"
#include "flatquant/base/thread_pool.h"

namespace flatquant {

// How a float linear multiplies.
enum class GemmFloatMath {
  kF32,   // float operands
  kBF16,  // activations and weights rounded to bfloat16; products summed in float
};

// Canonical weights of a linear, which somebody else owns, of any alignment:
// floats, or integers with one scale per row (W[r][c] = scale[r] q[r][c]).
struct FloatWeightsSource {
  int bits = 16;              // 16: floats of dtype; 2..4: nibbles, 5..8: int8, as in GemmIntSource
  DType dtype = DType::kF32;  // F64, F32, F16 or BF16
  int64_t rows = 0;
  int64_t cols = 0;
  const std::byte* weight = nullptr;
  const std::byte* scale = nullptr;  // float [rows], with bits <= 8
  const std::byte* bias = nullptr;   // float [rows], or nullptr
};

// Weights in memory, row by row, as small as they came: they are widened tile by
// tile where they are used. F64 becomes F32; for kBF16 every float becomes BF16.
struct FloatWeights {
  enum class Storage { kF32, kF16, kBF16, kNibble, kInt8 };
  Storage storage = Storage::kF32;
  GemmFloatMath math = GemmFloatMath::kF32;
  int64_t rows = 0;
  int64_t cols = 0;
  AlignedBuffer<uint8_t> data;  // rows of row_bytes()
  AlignedBuffer<float> scale;   // [rows] for kNibble and kInt8, else empty
  AlignedBuffer<float> bias;    // [rows] or empty

  size_t row_bytes() const;
  const uint8_t* row(int64_t r) const { return data.data() + static_cast<size_t>(r) * row_bytes(); }
  uint64_t bytes() const { return data.size() + (scale.size() + bias.size()) * sizeof(float); }
};

// Errors: kernels.broken_products (CheckGemmFloat).
FloatWeights LoadFloatWeights(const FloatWeightsSource& source, GemmFloatMath math,
                              ThreadPool& pool);

// Elements [col_begin, col_end) of a row, without its scale: integers stay
// integers, which float and bfloat16 hold exactly. col_begin must be even.
void WidenRow(const FloatWeights& weights, int64_t row, int64_t col_begin, int64_t col_end,
              float* out) noexcept;
void WidenRow(const FloatWeights& weights, int64_t row, int64_t col_begin, int64_t col_end,
              uint16_t* bf16_out) noexcept;

}  // namespace flatquant
