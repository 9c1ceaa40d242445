#pragma once

#include <cstdint>
#include <functional>
#include <optional>

#include "flatquant/compress/fold.h"
#include "flatquant/compress/job/block_store.h"
#include "flatquant/compress/residual_stream.h"
#include "flatquant/compress/run_plan.h"

namespace flatquant::compress {

// Quantizes the blocks of a plan, in rising order, with gaps where others are done
// already. Holds the calibration windows on their way through the network.
class BlockQuantizer {
 public:
  // plan: outlives the quantizer.
  explicit BlockQuantizer(const RunPlan& plan);

  // The block that the windows stand before.
  int64_t position() const { return position_; }

  // Takes the windows through the original block at position(), which is not to be
  // quantized here.
  void Skip();

  // Where the plan goes in order: what the quantized blocks before position()
  // produced; what they make of the block that Quantize was called for last.
  void RestoreStream(const BlockStore& store);
  const at::Tensor& quantized_stream() const { return stream_->quantized_inputs(); }

  // Quantizes the block at position() and passes it. on_step: called
  // plan.steps_per_block times. Errors: quantize.self_test (folding changed the
  // network), calibration.diverged, gptq.singular.
  FinishedBlock Quantize(const std::function<void()>& on_step);

 private:
  BlockParameters ChooseParameters(const BlockWeights& weights,
                                   const std::function<void()>& on_step, BlockReport* report) const;
  // GPTQ takes the quantized stream through the block meanwhile.
  QuantizedWeights ChooseCodes(const BlockTensors& folded, const BlockParameters& parameters);
  double SelfTest(const BlockWeights& weights, const BlockTensors& folded) const;
  SiteReports ReportSites(const BlockWeights& weights, const BlockTensors& folded,
                          const BlockParameters& parameters, const PackedBlock& packed) const;

  bool IsLast() const { return position_ + 1 == plan_.blocks; }

  const RunPlan& plan_;
  std::optional<ResidualStream> stream_;  // with calibration windows
  int64_t position_ = 0;
};

// A block that stays as it is, in the packed form.
PackedBlock KeepBlock(const SourceModel& model, int64_t layer);

}  // namespace flatquant::compress
