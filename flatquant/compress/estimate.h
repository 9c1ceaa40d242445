#pragma once

#include <cstdint>

#include "flatquant/compress/quantize.h"
#include "flatquant/model/config.h"

// What a run will cost, before it: counted operations and bytes, and how fast this
// machine is at them. docs/calibration.md has the formulas.
namespace flatquant {

// What one block asks for, in all.
struct BlockWork {
  double matmul_flops = 0;    // in the precision of training (bfloat16 or float32)
  double double_flops = 0;    // in float64: folding, GPTQ
  double streamed_bytes = 0;  // read or written by elementwise work, in and out of caches
};

struct WorkEstimate {
  int64_t blocks = 0;
  BlockWork block;
  uint64_t memory_bytes = 0;       // resident, at most; mapped model files not counted
  uint64_t stream_bytes = 0;       // of them, the calibration windows' activations
  uint64_t job_disk_bytes = 0;     // OUT.job at the end
  uint64_t output_disk_bytes = 0;  // OUT
};

// config: of the network; options, lm_head_bits: as for a run. windows of
// options.nsamples x options.seqlen tokens are assumed where the run calibrates.
// Errors: quantize.unknown_method, quantize.bad_option.
WorkEstimate EstimateWork(const ModelConfig& config, const QuantizeOptions& options,
                          int lm_head_bits);

// Rates, per second, of `options.threads` threads (or of the device).
struct MachineRates {
  double matmul_flops = 0;
  double double_flops = 0;
  double streamed_bytes = 0;
};

// Measures them for about a second on operands of the network's shapes. Errors:
// quantize.bad_device.
MachineRates MeasureRates(const ModelConfig& config, const QuantizeOptions& options);

// Packing writes at what an SSD does at least; the estimate writes nothing to find out.
inline constexpr double kAssumedDiskRate = 500e6;  // bytes per second

struct TimeEstimate {
  double calibration_seconds = 0;  // of one process; several share it
  double packing_seconds = 0;
};
TimeEstimate EstimateTime(const WorkEstimate& work, const MachineRates& rates);

}  // namespace flatquant
