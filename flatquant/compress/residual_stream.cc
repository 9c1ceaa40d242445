#include "flatquant/compress/residual_stream.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

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
                               at::Device device, StreamMemory memory)
    : config_(model.config()),
      device_(device),
      memory_(std::move(memory)),
      rope_(MakeRopeTables(config_, windows.length, at::kFloat, device)),
      inputs_(memory_.Allocate({windows.count, windows.length, config_.hidden}, device)) {
  const Tensor table = model.Embedding();
  for (int64_t i = 0; i < windows.count; ++i) {
    inputs_.select(0, i).copy_(EmbedTokens(table, windows.window(i), windows.length, device));
  }
}

at::Tensor ResidualStream::Batch(const at::Tensor& all, int64_t begin, int64_t count) const {
  return all.narrow(0, begin, count).to(device_);
}

void ResidualStream::Select(const at::Tensor& all, const at::Tensor& chosen, at::Tensor into) {
  if (all.device() == into.device()) {
    at::index_select_out(into, all, 0, chosen);
    return;
  }
  // From the host, window by window: each is one stretch of memory.
  const auto index = chosen.accessor<int64_t, 1>();
  for (int64_t i = 0; i < chosen.size(0); ++i) {
    into.select(0, i).copy_(all.select(0, index[i]));
  }
}

void ResidualStream::RunBlock(const BlockWeights& weights, int64_t batch) {
  at::NoGradGuard no_grad;
  const BlockTensors block = FullPrecision(weights);
  if (!outputs_.defined()) outputs_ = memory_.Allocate(inputs_.sizes(), device_);
  maxima_ = {};
  const auto observe = [this](Site site, const at::Tensor& x) {
    at::Tensor& maxima = maxima_[static_cast<size_t>(site)];
    const at::Tensor largest = x.abs().flatten(0, 1).amax(0);
    maxima = maxima.defined() ? at::maximum(maxima, largest) : largest;
  };
  for (int64_t begin = 0; begin < windows(); begin += batch) {
    const int64_t count = std::min(batch, windows() - begin);
    const at::Tensor x = Batch(inputs_, begin, count);
    outputs_.narrow(0, begin, count)
        .copy_(BlockForward(config_, block, rope_, x, Amp::kOff, observe));
  }
}

void ResidualStream::RunQuantizedBlock(const BlockTensors& quantized, int64_t batch) {
  RunQuantizedHalf(quantized, BlockHalf::kAttention, batch);
  RunQuantizedHalf(quantized, BlockHalf::kMlp, batch);
}

void ResidualStream::RunQuantizedHalf(const BlockTensors& quantized, BlockHalf half,
                                      int64_t batch) {
  at::NoGradGuard no_grad;
  const at::Tensor from = quantized_inputs();
  if (!quantized_.defined()) quantized_ = memory_.Allocate(inputs_.sizes(), device_);
  for (int64_t begin = 0; begin < windows(); begin += batch) {
    const int64_t count = std::min(batch, windows() - begin);
    const at::Tensor x = Batch(from, begin, count);
    quantized_.narrow(0, begin, count)
        .copy_(HalfForward(config_, quantized, rope_, x, half, Amp::kOff));
  }
}

at::Tensor* ResidualStream::RestoreQuantizedInputs() {
  quantized_ = memory_.Allocate(inputs_.sizes(), device_);
  return &quantized_;
}

void ResidualStream::Advance() { std::swap(inputs_, outputs_); }

}  // namespace flatquant::compress
