#pragma once

#include <cstdint>
#include <initializer_list>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/thread_pool.h"
#include "flatquant/runtime/loaded_model.h"

namespace flatquant {

// Memory for one site's output, sized for the widest site, and for its linears.
struct SiteBuffers {
  AlignedBuffer<float> floats;  // [tokens, columns]
  AlignedBuffer<int8_t> codes;  // [clips, tokens, stride]
  AlignedBuffer<float> scales;  // [clips, tokens]
  AlignedBuffer<float> update;  // [tokens, hidden]: what a float linear adds to the stream
};

SiteBuffers MakeSiteBuffers(const LoadedModel& model, int64_t tokens);

// A site's activation, transformed and quantized, as its linears read it. Valid
// until the next site is applied to the same buffers.
struct SiteOutput {
  const LoadedSite* site = nullptr;
  int64_t tokens = 0;
  int64_t columns = 0;            // elements per token
  const float* floats = nullptr;  // act_bits 16: [tokens, columns]
  const int8_t* codes = nullptr;  // else: [clips, tokens, code_stride]
  int64_t code_stride = 0;
  const float* scales = nullptr;  // [clips, tokens]
  float* dequantized = nullptr;   // room for [tokens, columns]
  float* update = nullptr;        // room for [tokens, hidden]
};

// x [tokens, width], and the norm or SwiGLU that precedes the site; all must stay
// valid as long as the output is used.
SiteOutput ApplySite(const LoadedSite& site, const float* x, const KronInputStage& before,
                     int64_t tokens, SiteBuffers& buffers, ThreadPool& pool);

// A linear of the site, and the memory [tokens, linear.rows] that it writes.
struct LinearCall {
  const LoadedLinear* linear = nullptr;
  float* y = nullptr;
};

// y = linear(input) for all linears of the site, in LinearsOf order.
void ApplyLinears(std::initializer_list<LinearCall> calls, const SiteOutput& input,
                  ThreadPool& pool);

// stream [tokens, hidden] += linear(input), for a site with one linear.
void AddLinear(const LoadedLinear& linear, const SiteOutput& input, float* stream,
               ThreadPool& pool);

}  // namespace flatquant
