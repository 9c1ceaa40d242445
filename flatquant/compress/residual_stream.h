#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>

#include "flatquant/compress/block_forward.h"
#include "flatquant/compress/block_weights.h"
#include "flatquant/compress/job/stream_memory.h"
#include "flatquant/data/token_windows.h"
#include "flatquant/model/source_model.h"

namespace flatquant::compress {

// The calibration windows on their way through the original network, block by
// block, in float32. A block that is trained on what enters and leaves it here does
// not depend on the quantized blocks before it. Where something does depend on
// them, the windows also travel through the quantized network, beside this one.
// Holds two copies of [windows, tokens, hidden], three with the quantized network: on
// the device that computes, or wherever `memory` puts them.
class ResidualStream {
 public:
  // Starts with the embeddings of the windows' tokens.
  ResidualStream(const SourceModel& model, const TokenWindows& windows, at::Device device,
                 StreamMemory memory = {});

  // Runs the original block over all windows, `batch` at a time: sets outputs()
  // and site_maxima().
  void RunBlock(const BlockWeights& weights, int64_t batch);

  // Runs the quantized block over quantized_inputs(), which become those of the next
  // block. Before Advance; for every block or for none.
  void RunQuantizedBlock(const BlockTensors& quantized, int64_t batch);

  // Takes quantized_inputs() through one half of the quantized block, in place: for who
  // chooses the weights of the other half by what this one gives.
  void RunQuantizedHalf(const BlockTensors& quantized, BlockHalf half, int64_t batch);

  // What an earlier run's RunQuantizedBlock calls led to, to be filled in: [windows,
  // tokens, hidden].
  at::Tensor* RestoreQuantizedInputs();

  // The block's outputs become the next one's inputs.
  void Advance();

  int64_t windows() const { return inputs_.size(0); }
  int64_t tokens() const { return inputs_.size(1); }
  const RopeTables& rope() const { return rope_; }
  // [windows, tokens, hidden], where they are kept. Batch and Select bring a part of one to
  // the device that computes.
  const at::Tensor& inputs() const { return inputs_; }
  const at::Tensor& outputs() const { return outputs_; }
  // What enters the block, or its next half, from what was quantized before, if that was run.
  const at::Tensor& quantized_inputs() const { return quantized_.defined() ? quantized_ : inputs_; }

  // `count` windows of `all` from window `begin`.
  at::Tensor Batch(const at::Tensor& all, int64_t begin, int64_t count) const;
  // Puts the windows of `all` that `chosen` lists into a tensor of the device that computes.
  // chosen: int64, where `all` is, so that no value of it need come to the host.
  static void Select(const at::Tensor& all, const at::Tensor& chosen, at::Tensor into);

  // The largest magnitude of each channel of a site's activation: [width].
  const at::Tensor& site_maxima(Site site) const { return maxima_[static_cast<size_t>(site)]; }

 private:
  ModelConfig config_;
  at::Device device_;
  StreamMemory memory_;
  RopeTables rope_;
  at::Tensor inputs_;
  at::Tensor outputs_;
  at::Tensor quantized_;
  std::array<at::Tensor, 4> maxima_;
};

// Rows of an embedding table [vocab, hidden] for [n] ids, as float32.
at::Tensor EmbedTokens(const Tensor& table, const int32_t* ids, int64_t n, at::Device device);

}  // namespace flatquant::compress
