#pragma once

#include <cstdint>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/runtime/loaded_model.h"

namespace flatquant {

// Memory for one site's output, sized for the widest site.
struct SiteBuffers {
  AlignedBuffer<float> floats;  // [tokens, width]
  AlignedBuffer<int8_t> codes;  // [clips, tokens, stride]
  AlignedBuffer<float> scales;  // [clips, tokens]
};

SiteBuffers MakeSiteBuffers(const LoadedModel& model, int64_t tokens);

// A site's activation, transformed and quantized, as its linears read it. Valid
// until the next site is applied to the same buffers.
struct SiteOutput {
  const LoadedSite* site = nullptr;
  int64_t tokens = 0;
  int64_t width = 0;
  const float* floats = nullptr;  // act_bits 16: [tokens, width]
  const int8_t* codes = nullptr;  // else: [clips, tokens, code_stride]
  int64_t code_stride = 0;
  const float* scales = nullptr;  // [clips, tokens]
  float* dequantized = nullptr;   // room for [tokens, width]
};

// x [tokens, width]; must stay valid as long as the output is used.
SiteOutput ApplySite(const LoadedSite& site, const float* x, int64_t tokens, SiteBuffers& buffers,
                     ThreadPool& pool);

// y [tokens, rows] = the site's linear number `index` (in LinearsOf order).
void ApplyLinear(const LoadedLinear& linear, const SiteOutput& input, size_t index, float* y,
                 ThreadPool& pool);

}  // namespace flatquant
