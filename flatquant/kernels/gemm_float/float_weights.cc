#include "flatquant/kernels/gemm_float/float_weights.h"

#include <immintrin.h>

#include <cstring>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"
#include "flatquant/base/tensor_view.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"

namespace flatquant {
namespace {

using Storage = FloatWeights::Storage;

Storage StorageOf(const FloatWeightsSource& source, GemmFloatMath math) {
  if (source.bits <= 4) return Storage::kNibble;
  if (source.bits <= 8) return Storage::kInt8;
  if (math == GemmFloatMath::kBF16) return Storage::kBF16;
  if (source.dtype == DType::kF16) return Storage::kF16;
  if (source.dtype == DType::kBF16) return Storage::kBF16;
  return Storage::kF32;
}

AlignedBuffer<float> CopyFloats(const std::byte* from, int64_t rows) {
  if (from == nullptr) return {};
  AlignedBuffer<float> floats(static_cast<size_t>(rows));
  std::memcpy(floats.data(), from, static_cast<size_t>(rows) * sizeof(float));
  return floats;
}

// One row of floats from the source's type to the storage's.
void ConvertRow(const FloatWeightsSource& source, int64_t row, FloatWeights& weights) {
  const size_t cols = static_cast<size_t>(source.cols);
  const std::byte* from = source.weight + static_cast<size_t>(row) * cols * DTypeSize(source.dtype);
  uint8_t* to = weights.data.data() + static_cast<size_t>(row) * weights.row_bytes();
  if (DTypeSize(source.dtype) * cols == weights.row_bytes() &&
      (source.dtype == DType::kF32 || weights.storage == Storage::kF16 ||
       source.dtype == DType::kBF16)) {
    std::memcpy(to, from, weights.row_bytes());
    return;
  }
  std::vector<float> values(cols);
  TensorView{source.dtype, {source.cols}, from}.ToFloat(values.data());
  if (weights.storage == Storage::kBF16) {
    FloatToBF16(values.data(), reinterpret_cast<uint16_t*>(to), cols);
  } else {
    std::memcpy(to, values.data(), cols * sizeof(float));
  }
}

// Writes convert(integer) for columns [col_begin, col_end) of a row.
template <typename Out, typename Convert>
void UnpackIntegers(const FloatWeights& weights, int64_t row, int64_t col_begin, int64_t col_end,
                    Out* __restrict out, Convert convert) {
  const uint8_t* __restrict in = weights.row(row);
  const int64_t n = col_end - col_begin;
  if (weights.storage == Storage::kInt8) {
    const int8_t* __restrict bytes = reinterpret_cast<const int8_t*>(in) + col_begin;
    for (int64_t c = 0; c < n; ++c) out[c] = convert(static_cast<float>(bytes[c]));
    return;
  }
  in += col_begin / 2;
  for (int64_t i = 0; i < n / 2; ++i) {
    const int32_t pair = in[i];
    out[2 * i] = convert(static_cast<float>(((pair & 15) ^ 8) - 8));
    out[2 * i + 1] = convert(static_cast<float>(((pair >> 4) ^ 8) - 8));
  }
  if (n % 2 != 0) out[n - 1] = convert(static_cast<float>(((in[n / 2] & 15) ^ 8) - 8));
}

// As F16ToFloat, eight at a time.
void WidenF16(const uint16_t* from, float* to, size_t n) {
  size_t i = 0;
  for (; i + 8 <= n; i += 8) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i));
    _mm256_storeu_ps(to + i, _mm256_cvtph_ps(half));
  }
  F16ToFloat(from + i, to + i, n - i);
}

}  // namespace

size_t FloatWeights::row_bytes() const {
  const size_t n = static_cast<size_t>(cols);
  switch (storage) {
    case Storage::kF32:
      return n * 4;
    case Storage::kF16:
    case Storage::kBF16:
      return n * 2;
    case Storage::kInt8:
      return n;
    case Storage::kNibble:
      return (n + 1) / 2;
  }
  return 0;
}

FloatWeights LoadFloatWeights(const FloatWeightsSource& source, GemmFloatMath math,
                              ThreadPool& pool) {
  CheckGemmFloat();
  FLATQUANT_CHECK(source.bits == 16 || (source.bits >= 2 && source.bits <= 8));
  FLATQUANT_CHECK(source.bits != 16 || IsFloat(source.dtype));
  FloatWeights weights;
  weights.storage = StorageOf(source, math);
  weights.math = math;
  weights.rows = source.rows;
  weights.cols = source.cols;
  weights.data = AlignedBuffer<uint8_t>(static_cast<size_t>(source.rows) * weights.row_bytes());
  weights.scale = CopyFloats(source.bits <= 8 ? source.scale : nullptr, source.rows);
  weights.bias = CopyFloats(source.bias, source.rows);
  pool.ParallelFor(static_cast<size_t>(source.rows), 64, [&](size_t begin, size_t end) {
    if (source.bits <= 8) {
      std::memcpy(weights.data.data() + begin * weights.row_bytes(),
                  source.weight + begin * weights.row_bytes(), (end - begin) * weights.row_bytes());
      return;
    }
    for (size_t r = begin; r < end; ++r) ConvertRow(source, static_cast<int64_t>(r), weights);
  });
  return weights;
}

void WidenRow(const FloatWeights& weights, int64_t row, int64_t col_begin, int64_t col_end,
              float* out) noexcept {
  const size_t n = static_cast<size_t>(col_end - col_begin);
  const uint8_t* in = weights.row(row);
  switch (weights.storage) {
    case Storage::kF32:
      std::memcpy(out, in + col_begin * 4, n * 4);
      return;
    case Storage::kBF16:
      BF16ToFloat(reinterpret_cast<const uint16_t*>(in) + col_begin, out, n);
      return;
    case Storage::kF16:
      WidenF16(reinterpret_cast<const uint16_t*>(in) + col_begin, out, n);
      return;
    default:
      UnpackIntegers(weights, row, col_begin, col_end, out, [](float v) { return v; });
  }
}

void WidenRow(const FloatWeights& weights, int64_t row, int64_t col_begin, int64_t col_end,
              uint16_t* bf16_out) noexcept {
  if (weights.storage == Storage::kBF16) {
    std::memcpy(bf16_out, weights.row(row) + col_begin * 2,
                static_cast<size_t>(col_end - col_begin) * 2);
    return;
  }
  UnpackIntegers(weights, row, col_begin, col_end, bf16_out,
                 [](float v) { return FloatToBF16(v); });
}

}  // namespace flatquant
