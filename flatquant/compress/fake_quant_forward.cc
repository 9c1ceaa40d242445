#include "flatquant/compress/fake_quant_forward.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "flatquant/base/error.h"
#include "flatquant/compress/block_forward.h"
#include "flatquant/compress/ops/fake_quant.h"
#include "flatquant/compress/ops/norm.h"
#include "flatquant/compress/ops/parallel.h"
#include "flatquant/compress/residual_stream.h"
#include "flatquant/compress/tensor_bridge.h"
#include "flatquant/compress/unpack.h"
#include "flatquant/packed/flattening.h"
#include "flatquant/packed/head.h"
#include "flatquant/packed/nibbles.h"

namespace flatquant {
namespace {

namespace fc = compress;

// Windows that travel through the blocks together: a block is dequantized once
// for them, and their residual stream fits in memory.
constexpr int64_t kWindowsAtOnce = 16;

// Rows of logits held at a time.
constexpr int64_t kLogitRows = 512;

const at::Device kCpu(at::kCPU);

at::Tensor Floats(const Tensor& tensor) { return fc::ToTorch(tensor, at::kFloat, kCpu); }

at::Tensor Dequantize(const PackedLinear& linear, const LinearShape& shape) {
  at::Tensor weight = at::empty({shape.rows, shape.cols}, at::kFloat);
  for (int64_t row = 0; row < shape.rows; ++row) {
    DequantizeRow(linear, row, shape.cols, weight.data_ptr<float>() + row * shape.cols);
  }
  return weight;
}

// sigmoid(logit) = factor; a factor of 1 needs no logit.
at::Tensor Logit(float factor) {
  if (factor >= 1.0f) return {};
  return at::full({1}, std::log(static_cast<double>(factor) / (1.0 - static_cast<double>(factor))),
                  at::kFloat);
}

fc::ClipLogits Logits(const Clip& clip) { return {Logit(clip.max), Logit(clip.min)}; }

fc::ColumnMap Columns(const PackedSite& site, int64_t width) {
  const at::Tensor channels = at::arange(width, at::kLong);
  std::vector<int64_t> channel, piece;
  for (const ExtraColumn& column : UnpackExtraColumns(site.extra_columns)) {
    channel.push_back(column.channel);
    piece.push_back(column.piece);
  }
  return fc::MakeColumnMap(site.act_bits, site.act_scale.ToFloat()[0], width,
                           at::cat({channels, at::tensor(channel, at::kLong)}),
                           at::cat({at::zeros_like(channels), at::tensor(piece, at::kLong)}));
}

}  // namespace

compress::BlockTensors compress::Unpack(const ModelConfig& config, const PackedBlock& packed) {
  fc::BlockTensors block;
  block.input_norm = Floats(packed.input_norm);
  block.post_attention_norm = Floats(packed.post_attention_norm);
  block.q_norm = Floats(packed.q_norm);
  block.k_norm = Floats(packed.k_norm);
  for (const Linear which : kLinears) {
    const size_t i = static_cast<size_t>(which);
    block.weights[i] = Dequantize(packed.linear(which), StoredShape(config, packed, which));
    block.biases[i] = Floats(packed.linear(which).bias);
  }
  for (const Site which : kSites) {
    const PackedSite& from = packed.site(which);
    fc::BlockTensors::SiteTensors& to = block.site(which);
    to.left = Floats(from.left);
    to.right = Floats(from.right);
    to.act_bits = from.act_bits;
    if (from.is_flattened()) to.columns = Columns(from, SiteWidth(config, which));
    to.clips.clear();
    for (const Clip& clip : from.clips) to.clips.push_back(Logits(clip));
  }
  block.k_transform = Floats(packed.cache.k_transform);
  block.q_transform = Floats(packed.cache.q_transform);
  block.k_bits = packed.cache.k_bits;
  block.v_bits = packed.cache.v_bits;
  block.k_clip = Logits(packed.cache.k_clip);
  block.v_clip = Logits(packed.cache.v_clip);
  return block;
}

namespace {

// NLL of the `tokens` that follow each row of x [tokens, hidden].
void RowNll(const at::Tensor& x, const at::Tensor& head, const int32_t* next, float* nll) {
  for (int64_t begin = 0; begin < x.size(0); begin += kLogitRows) {
    const int64_t count = std::min(kLogitRows, x.size(0) - begin);
    const at::Tensor logits = at::matmul(x.narrow(0, begin, count), head.t());
    const at::Tensor all = logits.logsumexp(1);
    const auto values = logits.accessor<float, 2>();
    for (int64_t i = 0; i < count; ++i) {
      nll[begin + i] = all.data_ptr<float>()[i] - values[i][next[begin + i]];
    }
  }
}

}  // namespace

std::vector<float> FakeQuantTokenNll(const PackedModel& model, const TokenWindows& windows,
                                     int threads) {
  FLATQUANT_CHECK(windows.length >= 2);
  at::NoGradGuard no_grad;
  fc::SetOpThreads(threads);
  const ModelConfig& config = model.config;
  const int64_t predicted = windows.length - 1;
  const fc::RopeTables rope = fc::MakeRopeTables(config, windows.length, at::kFloat, kCpu);
  const LinearShape table_shape{config.vocab, config.hidden};
  const at::Tensor head = Dequantize(HeadLinear(model), table_shape);
  const Tensor embedding =
      model.head.bits == 16 || model.lm_head.defined()
          ? model.embedding
          : flatquant::Dequantize(EmbeddingTable(model), table_shape.rows, table_shape.cols);
  const at::Tensor final_norm = Floats(model.final_norm);

  std::vector<float> nll(static_cast<size_t>(windows.count * predicted));
  for (int64_t first = 0; first < windows.count; first += kWindowsAtOnce) {
    const int64_t count = std::min(kWindowsAtOnce, windows.count - first);
    at::Tensor x = fc::EmbedTokens(embedding, windows.window(first), count * windows.length, kCpu)
                       .view({count, windows.length, config.hidden});
    for (const PackedBlock& packed : model.blocks) {
      const fc::BlockTensors block = fc::Unpack(config, packed);
      for (int64_t i = 0; i < count; ++i) {
        at::Tensor window = x.narrow(0, i, 1);
        window.copy_(fc::BlockForward(config, block, rope, window, fc::Amp::kOff));
      }
    }
    x = fc::RmsNorm(x, final_norm, config.rms_eps);
    if (model.head.act_bits < 16) x = fc::FakeQuantActivation(x, {}, {}, model.head.act_bits);
    for (int64_t i = 0; i < count; ++i) {
      RowNll(x.select(0, i).narrow(0, 0, predicted), head, windows.window(first + i) + 1,
             nll.data() + (first + i) * predicted);
    }
  }
  return nll;
}

}  // namespace flatquant
