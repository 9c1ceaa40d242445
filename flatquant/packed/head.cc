#include "flatquant/packed/head.h"

#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {
namespace {

// The row's codes with a scale; returns the squared error.
double RoundRow(const std::vector<float>& row, float scale, int bits, int8_t* codes) {
  double error = 0;
  for (size_t c = 0; c < row.size(); ++c) {
    const float code =
        std::clamp(std::nearbyint(row[c] / scale), static_cast<float>(SmallestCode(bits)),
                   static_cast<float>(LargestCode(bits)));
    codes[c] = static_cast<int8_t>(code);
    const double difference = static_cast<double>(row[c]) - scale * code;
    error += difference * difference;
  }
  return error;
}

// Chooses the row's scale, writes its codes, returns the scale.
float QuantizeRow(const std::vector<float>& row, int bits, int8_t* codes) {
  float largest = 0;
  for (float value : row) largest = std::max(largest, std::abs(value));
  if (largest == 0 || !std::isfinite(largest)) {
    std::fill_n(codes, row.size(), int8_t{0});
    return 1;
  }
  const float whole = largest / static_cast<float>(LargestCode(bits));
  // At 8 bits rounding errs by less than what clipping would add.
  if (bits == 8) {
    RoundRow(row, whole, bits, codes);
    return whole;
  }
  constexpr int kSteps = 20;  // ranges of 100%, 97.5%, ..., 52.5% of the largest
  float best = whole;
  double least = RoundRow(row, whole, bits, codes);
  for (int step = 1; step < kSteps; ++step) {
    const float scale = whole * (1 - 0.025f * static_cast<float>(step));
    const double error = RoundRow(row, scale, bits, codes);
    if (error >= least) continue;
    least = error;
    best = scale;
  }
  RoundRow(row, best, bits, codes);
  return best;
}

}  // namespace

PackedLinear HeadLinear(const PackedModel& model) {
  PackedLinear linear;
  linear.bits = model.head.bits;
  linear.weight = model.lm_head.defined() ? model.lm_head : model.embedding;
  linear.scale = model.head.scale;
  return linear;
}

PackedLinear EmbeddingTable(const PackedModel& model) {
  if (!model.lm_head.defined()) return HeadLinear(model);
  PackedLinear table;
  table.weight = model.embedding;
  return table;
}

void QuantizeHead(int bits, int act_bits, PackedModel* model) {
  FLATQUANT_CHECK(bits >= 2 && bits <= 8 && model->head.bits == 16);
  Tensor& weight = model->lm_head.defined() ? model->lm_head : model->embedding;
  const int64_t rows = model->config.vocab;
  const int64_t cols = model->config.hidden;
  const PackedLinear source = HeadLinear(*model);
  std::vector<float> row(static_cast<size_t>(cols));
  std::vector<int8_t> codes(static_cast<size_t>(cols));
  std::vector<float> scales(static_cast<size_t>(rows));
  const int64_t row_bytes = PackedRowBytes(bits, cols);
  std::vector<std::byte> packed(static_cast<size_t>(rows * row_bytes));
  for (int64_t r = 0; r < rows; ++r) {
    DequantizeRow(source, r, cols, row.data());
    scales[static_cast<size_t>(r)] = QuantizeRow(row, bits, codes.data());
    PackRow(bits, codes.data(), cols, packed.data() + r * row_bytes);
  }
  weight = Tensor::Own(CodeDType(bits), {rows, row_bytes}, std::move(packed));
  model->head.bits = bits;
  model->head.act_bits = act_bits;
  model->head.scale = Tensor::Floats({rows}, std::move(scales));
}

Tensor Dequantize(const PackedLinear& linear, int64_t rows, int64_t cols) {
  std::vector<float> all(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r) DequantizeRow(linear, r, cols, all.data() + r * cols);
  return Tensor::Floats({rows, cols}, std::move(all));
}

}  // namespace flatquant
