#include <cstring>

#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct RowTag {};

size_t RowBytes(int bits, int64_t cols) {
  return static_cast<size_t>(bits <= 4 ? (cols + 1) / 2 : cols);
}

size_t PackedBytes(int bits, int64_t rows, int64_t cols) noexcept {
  return static_cast<size_t>(rows) * RowBytes(bits, cols);
}

void Pack(const GemmIntSource& source, int64_t row_begin, int64_t row_end,
          uint8_t* packed) noexcept {
  const size_t row_bytes = RowBytes(source.bits, source.cols);
  std::memcpy(packed + static_cast<size_t>(row_begin) * row_bytes,
              source.weight + static_cast<size_t>(row_begin) * row_bytes,
              static_cast<size_t>(row_end - row_begin) * row_bytes);
}

void DecodeRow(const GemmIntWeights& weights, int64_t row, int8_t* out) {
  const uint8_t* in =
      weights.data.data() + static_cast<size_t>(row) * RowBytes(weights.bits, weights.cols);
  if (weights.bits > 4) {
    std::memcpy(out, in, static_cast<size_t>(weights.cols));
    return;
  }
  for (int64_t i = 0; i < (weights.cols + 1) / 2; ++i) {
    out[2 * i] = static_cast<int8_t>(static_cast<int8_t>(in[i] << 4) >> 4);
    out[2 * i + 1] = static_cast<int8_t>(static_cast<int8_t>(in[i]) >> 4);
  }
}

void Compute(const GemmIntArgs& args, int64_t m_begin, int64_t m_end, int64_t row_begin,
             int64_t row_end) noexcept {
  const GemmIntWeights& weights = *args.weights;
  int8_t* row_values = ThreadScratch<RowTag, int8_t>(static_cast<size_t>(weights.cols) + 1);
  for (int64_t r = row_begin; r < row_end; ++r) {
    DecodeRow(weights, r, row_values);
    for (int64_t m = m_begin; m < m_end; ++m) {
      const int8_t* act = args.act + m * args.act_stride;
      int32_t sum = 0;
      for (int64_t c = 0; c < weights.cols; ++c) sum += act[c] * row_values[c];
      float y = static_cast<float>(sum) * (args.act_scale[m] * weights.scale[r]) + weights.bias[r];
      if (args.residual != nullptr) y += args.residual[m * args.residual_stride + r];
      args.y[m * args.y_stride + r] = y;
    }
  }
}

}  // namespace

extern const GemmIntKernel kGemmIntReference;
const GemmIntKernel kGemmIntReference = {1, PackedBytes, Pack, Compute};

}  // namespace flatquant
