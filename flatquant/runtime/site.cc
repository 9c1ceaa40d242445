#include "flatquant/runtime/site.h"

#include <algorithm>
#include <array>
#include <span>

#include "flatquant/base/error.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"

namespace flatquant {
namespace {

// Integer activations for a float linear: y = q s.
const float* Dequantize(const SiteOutput& input, const int8_t* codes, const float* scales,
                        ThreadPool& pool) {
  pool.ParallelFor(static_cast<size_t>(input.tokens), 16, [&](size_t begin, size_t end) {
    for (size_t t = begin; t < end; ++t) {
      const int8_t* q = codes + t * static_cast<size_t>(input.code_stride);
      float* y = input.dequantized + t * static_cast<size_t>(input.columns);
      for (int64_t c = 0; c < input.columns; ++c) y[c] = static_cast<float>(q[c]) * scales[t];
    }
  });
  return input.dequantized;
}

// The codes and scales that linear number `index` of the site reads.
struct Quantized {
  const int8_t* codes;
  const float* scales;
};

Quantized QuantizedFor(const SiteOutput& input, size_t index) {
  Quantized part = {input.codes, input.scales};
  if (input.codes != nullptr && input.site->clips.size() > 1) {
    const size_t first = index * static_cast<size_t>(input.tokens);
    part.codes += first * static_cast<size_t>(input.code_stride);
    part.scales += first;
  }
  return part;
}

GemmIntArgs IntegerArgs(const GemmIntWeights& weights, const SiteOutput& input, size_t index,
                        float* y) {
  const Quantized part = QuantizedFor(input, index);
  GemmIntArgs args;
  args.act = part.codes;
  args.act_stride = input.code_stride;
  args.act_scale = part.scales;
  args.act_bits = input.site->act_bits;
  args.tokens = input.tokens;
  args.weights = &weights;
  args.y = y;
  args.y_stride = weights.rows;
  return args;
}

void MultiplyFloats(const LoadedLinear& linear, const SiteOutput& input, size_t index, float* y,
                    ThreadPool& pool) {
  const float* x = input.floats;
  if (x == nullptr) {
    const Quantized part = QuantizedFor(input, index);
    x = Dequantize(input, part.codes, part.scales, pool);
  }
  GemmFloatArgs args;
  args.x = x;
  args.tokens = input.tokens;
  args.weights = &std::get<FloatWeights>(linear.weights);
  args.row_end = linear.rows;
  args.y = y;
  args.y_stride = linear.rows;
  GemmFloat(args, pool);
}

}  // namespace

SiteBuffers MakeSiteBuffers(const LoadedModel& model, int64_t tokens) {
  int64_t floats = 0;
  int64_t codes = 0;
  int64_t scales = 0;
  const auto fit = [&](const LoadedSite& site) {
    const int64_t columns = site.columns();
    const int64_t clips = static_cast<int64_t>(site.clips.size());
    floats = std::max(floats, tokens * columns);
    if (site.act_bits > 8) return;
    codes = std::max(codes, clips * tokens * GemmIntActStride(columns));
    scales = std::max(scales, clips * tokens);
  };
  for (const LoadedBlock& block : model.blocks) {
    for (const LoadedSite& site : block.sites) fit(site);
  }
  fit(model.head_site);
  SiteBuffers buffers;
  buffers.floats = AlignedBuffer<float>(static_cast<size_t>(floats));
  buffers.codes = AlignedBuffer<int8_t>(static_cast<size_t>(codes));
  buffers.scales = AlignedBuffer<float>(static_cast<size_t>(scales));
  buffers.update = AlignedBuffer<float>(static_cast<size_t>(tokens * model.config.hidden));
  return buffers;
}

namespace {

// The codes of a flattened site.
void ApplyFlattening(const float* x, const KronInputStage& before, SiteBuffers& buffers,
                     ThreadPool& pool, SiteOutput* output) {
  FlattenQuantizeArgs args;
  args.x = x;
  args.input = before;
  args.tokens = output->tokens;
  args.flattening = &*output->site->flattening;
  args.codes = buffers.codes.data();
  args.code_stride = GemmIntActStride(output->columns);
  args.scales = buffers.scales.data();
  output->codes = args.codes;
  output->code_stride = args.code_stride;
  output->scales = args.scales;
  FlattenQuantize(args, pool);
}

}  // namespace

SiteOutput ApplySite(const LoadedSite& site, const float* x, const KronInputStage& before,
                     int64_t tokens, SiteBuffers& buffers, ThreadPool& pool) {
  SiteOutput output;
  output.site = &site;
  output.tokens = tokens;
  output.columns = site.columns();
  output.dequantized = buffers.floats.data();
  output.update = buffers.update.data();
  if (site.flattening) {
    ApplyFlattening(x, before, buffers, pool, &output);
    return output;
  }
  if (site.act_bits > 8 && site.transform.is_identity() && before.is_none()) {
    output.floats = x;
    return output;
  }
  KronQuantizeArgs args;
  args.x = x;
  args.input = before;
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
    args.code_stride = GemmIntActStride(output.columns);
    args.scales = buffers.scales.data();
    output.codes = args.codes;
    output.code_stride = args.code_stride;
    output.scales = args.scales;
  }
  KronQuantize(args, pool);
  return output;
}

void ApplyLinears(std::initializer_list<LinearCall> calls, const SiteOutput& input,
                  ThreadPool& pool) {
  constexpr size_t kMostLinears = 3;  // q, k, v
  std::array<GemmIntArgs, kMostLinears> integers;
  FLATQUANT_CHECK(calls.size() <= kMostLinears);
  size_t integer_count = 0;
  size_t index = 0;
  for (const LinearCall& call : calls) {
    if (const auto* weights = std::get_if<GemmIntWeights>(&call.linear->weights)) {
      integers[integer_count++] = IntegerArgs(*weights, input, index, call.y);
    } else {
      MultiplyFloats(*call.linear, input, index, call.y, pool);
    }
    ++index;
  }
  if (integer_count > 0) GemmInt(std::span(integers).first(integer_count), pool);
}

void AddLinear(const LoadedLinear& linear, const SiteOutput& input, float* stream,
               ThreadPool& pool) {
  if (const auto* weights = std::get_if<GemmIntWeights>(&linear.weights)) {
    GemmIntArgs args = IntegerArgs(*weights, input, 0, stream);
    args.residual = stream;
    args.residual_stride = linear.rows;
    GemmInt(args, pool);
    return;
  }
  MultiplyFloats(linear, input, 0, input.update, pool);
  pool.ParallelFor(static_cast<size_t>(input.tokens * linear.rows), 32768,
                   [&](size_t begin, size_t end) {
                     for (size_t i = begin; i < end; ++i) stream[i] += input.update[i];
                   });
}

}  // namespace flatquant
