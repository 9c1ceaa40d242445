#include "flatquant/runtime/site.h"

#include <algorithm>

#include "flatquant/kernels/gemm_float/gemm_float.h"

namespace flatquant {
namespace {

// Integer activations for a float linear: y = q s.
const float* Dequantize(const SiteOutput& input, const int8_t* codes, const float* scales,
                        ThreadPool& pool) {
  pool.ParallelFor(static_cast<size_t>(input.tokens), 16, [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      const int8_t* q = codes + t * static_cast<size_t>(input.code_stride);
      float* y = input.dequantized + t * static_cast<size_t>(input.width);
      for (int64_t c = 0; c < input.width; ++c) y[c] = static_cast<float>(q[c]) * scales[t];
    }
  });
  return input.dequantized;
}

}  // namespace

SiteBuffers MakeSiteBuffers(const LoadedModel& model, int64_t tokens) {
  int64_t floats = 0;
  int64_t codes = 0;
  int64_t scales = 0;
  for (const LoadedBlock& block : model.blocks) {
    for (const LoadedSite& site : block.sites) {
      const int64_t width = site.transform.width();
      const int64_t clips = static_cast<int64_t>(site.clips.size());
      floats = std::max(floats, tokens * width);
      if (site.act_bits > 8) continue;
      codes = std::max(codes, clips * tokens * GemmIntActStride(width));
      scales = std::max(scales, clips * tokens);
    }
  }
  SiteBuffers buffers;
  buffers.floats = AlignedBuffer<float>(static_cast<size_t>(floats));
  buffers.codes = AlignedBuffer<int8_t>(static_cast<size_t>(codes));
  buffers.scales = AlignedBuffer<float>(static_cast<size_t>(scales));
  return buffers;
}

SiteOutput ApplySite(const LoadedSite& site, const float* x, int64_t tokens, SiteBuffers& buffers,
                     ThreadPool& pool) {
  SiteOutput output;
  output.site = &site;
  output.tokens = tokens;
  output.width = site.transform.width();
  output.dequantized = buffers.floats.data();
  const bool is_identity = site.transform.left.size() == 0 && site.transform.right.size() == 0;
  if (site.act_bits > 8 && is_identity) {
    output.floats = x;
    return output;
  }
  KronQuantizeArgs args;
  args.x = x;
  args.tokens = tokens;
  args.transform = &site.transform;
  args.bits = site.act_bits;
  if (site.act_bits > 8) {
    args.y = buffers.floats.data();
    output.floats = args.y;
  } else {
    args.clips = site.clips.data();
    args.clip_count = static_cast<int64_t>(site.clips.size());
    args.codes = buffers.codes.data();
    args.code_stride = GemmIntActStride(output.width);
    args.scales = buffers.scales.data();
    output.codes = args.codes;
    output.code_stride = args.code_stride;
    output.scales = args.scales;
  }
  KronQuantize(args, pool);
  return output;
}

void ApplyLinear(const LoadedLinear& linear, const SiteOutput& input, size_t index, float* y,
                 ThreadPool& pool) {
  const int8_t* codes = input.codes;
  const float* scales = input.scales;
  if (codes != nullptr && input.site->clips.size() > 1) {
    const size_t first = index * static_cast<size_t>(input.tokens);
    codes += first * static_cast<size_t>(input.code_stride);
    scales += first;
  }
  if (const auto* integers = std::get_if<GemmIntWeights>(&linear.weights)) {
    GemmInt({.act = codes,
             .act_stride = input.code_stride,
             .act_scale = scales,
             .tokens = input.tokens,
             .weights = integers,
             .y = y,
             .y_stride = linear.rows},
            pool);
    return;
  }
  const float* x = input.floats != nullptr ? input.floats : Dequantize(input, codes, scales, pool);
  GemmFloat({.x = x,
             .tokens = input.tokens,
             .weights = &std::get<FloatWeights>(linear.weights),
             .row_begin = 0,
             .row_end = linear.rows,
             .y = y,
             .y_stride = linear.rows},
            pool);
}

}  // namespace flatquant
