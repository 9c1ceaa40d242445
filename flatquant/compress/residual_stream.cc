#include "flatquant/compress/residual_stream.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "flatquant/base/error.h"
#include "flatquant/compress/tensor_bridge.h"

namespace flatquant::compress {

at::Tensor EmbedTokens(const Tensor& table, const int32_t* ids, int64_t n, at::Device device) {
  const int64_t hidden = table.shape[1];
  const size_t row_bytes = static_cast<size_t>(hidden) * DTypeSize(table.dtype);
  at::Tensor rows = at::empty({n, hidden}, at::kFloat);
  float* out = rows.data_ptr<float>();
  for (int64_t i = 0; i < n; ++i) {
    FLATQUANT_CHECK(ids[i] >= 0 && ids[i] < table.shape[0]);
    const TensorView row{
        table.dtype, {hidden}, table.data + static_cast<size_t>(ids[i]) * row_bytes};
    row.ToFloat(out + i * hidden);
  }
  return rows.to(device);
}

ResidualStream::ResidualStream(const SourceModel& model, const TokenWindows& windows,
                               at::Device device)
    : config_(model.config()),
      rope_(MakeRopeTables(config_, windows.length, at::kFloat, device)),
      inputs_(
          EmbedTokens(model.Embedding(), windows.ids.data(), windows.count * windows.length, device)
              .view({windows.count, windows.length, config_.hidden})) {}

void ResidualStream::RunBlock(const BlockWeights& weights, int64_t batch) {
  at::NoGradGuard no_grad;
  const BlockTensors block = FullPrecision(weights);
  if (!outputs_.defined()) outputs_ = at::empty_like(inputs_);
  maxima_ = {};
  const auto observe = [this](Site site, const at::Tensor& x) {
    at::Tensor& maxima = maxima_[static_cast<size_t>(site)];
    const at::Tensor largest = x.abs().flatten(0, 1).amax(0);
    maxima = maxima.defined() ? at::maximum(maxima, largest) : largest;
  };
  for (int64_t begin = 0; begin < windows(); begin += batch) {
    const int64_t count = std::min(batch, windows() - begin);
    const at::Tensor x = inputs_.narrow(0, begin, count);
    outputs_.narrow(0, begin, count)
        .copy_(BlockForward(config_, block, rope_, x, /*amp=*/false, observe));
  }
}

void ResidualStream::RunQuantizedBlock(const BlockTensors& quantized, int64_t batch) {
  at::NoGradGuard no_grad;
  const at::Tensor from = quantized_inputs();
  if (!quantized_.defined()) quantized_ = at::empty_like(inputs_);
  for (int64_t begin = 0; begin < windows(); begin += batch) {
    const int64_t count = std::min(batch, windows() - begin);
    const at::Tensor x = from.narrow(0, begin, count);
    quantized_.narrow(0, begin, count)
        .copy_(BlockForward(config_, quantized, rope_, x, /*amp=*/false));
  }
}

void ResidualStream::Advance() { std::swap(inputs_, outputs_); }

}  // namespace flatquant::compress
