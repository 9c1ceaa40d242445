#pragma once

#include <string>

#include "flatquant/bench/end_to_end.h"
#include "flatquant/bench/result.h"
#include "flatquant/model/config.h"

// The benchmarks of operations.h on a GPU.
namespace flatquant::bench {

// Makes the device of an option --device the one that the functions below use. Errors:
// cuda.not_built, cuda.no_device.
void UseGpu(const std::string& device);

// What the current GPU can do. Errors: cuda.not_built, cuda.failed.
CudaLimits MeasureGpuLimits();

// The products of every distinct linear: W4A4, W4A16 and bf16.
void RunGpuLinears(const ModelConfig& config, const Plan& plan, Run* run);

// One layer's attention with caches of 4 and 16 bits. Unlike on the CPU, prompts come in
// each batch. Errors: cuda.unsupported_head_dim.
void RunGpuAttention(const ModelConfig& config, const Plan& plan, Run* run);

// What stands before each site, with and without its transform, what Q, K and V pass
// through before attention, and drawing a token.
void RunGpuKernels(const ModelConfig& config, const Plan& plan, Run* run);

}  // namespace flatquant::bench
