#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"

#include <algorithm>

#include "flatquant/base/error.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/scratch.h"

namespace flatquant {
namespace {

struct FlattenTag {};

// Tokens of a task: 4096 elements are some microseconds of work, which outweighs the
// hand-over, and 16 KB, which stay in L1.
int64_t TokenSlice(int64_t width) { return std::max<int64_t>(1, 4096 / width); }

// Tokens [begin, end) of a call.
void RunTask(const FlattenQuantizeArgs& args, int64_t begin, int64_t end) {
  const Flattening& flattening = *args.flattening;
  const FlattenQuantizeKernel& kernel = *flattening.kernel;
  const int64_t width = flattening.width;
  const int64_t extra = flattening.extra();
  const int64_t tokens = end - begin;
  float* made = ThreadScratch<FlattenTag, float>(static_cast<size_t>(tokens * width + extra));
  float* gathered = made + tokens * width;

  const float* x = args.x + begin * width;
  if (args.input.norm_weight != nullptr) {
    kernel.rms_norm->run({x, args.input.norm_weight, args.input.norm_eps, tokens, width, made}, 0,
                         tokens);
    x = made;
  } else if (args.input.up != nullptr) {
    kernel.swiglu->run({x, args.input.up + begin * width, tokens, width, made}, 0, tokens);
    x = made;
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const float* row = x + t * width;
    for (int64_t i = 0; i < extra; ++i) {
      gathered[i] = row[flattening.channel[static_cast<size_t>(i)]];
    }
    kernel.quantize(flattening, row, gathered, args.codes + (begin + t) * args.code_stride,
                    args.code_stride);
    args.scales[begin + t] = flattening.scale;
  }
}

}  // namespace

Flattening MakeFlattening(int64_t width, int bits, float scale,
                          std::span<const FlattenColumn> extra,
                          const FlattenQuantizeKernel* kernel) {
  FLATQUANT_CHECK(width > 0 && bits >= 2 && bits <= 8 && scale > 0);
  const int32_t top = (1 << (bits - 1)) - 1;
  Flattening flattening;
  flattening.width = width;
  flattening.bits = bits;
  flattening.scale = scale;
  flattening.channel = AlignedBuffer<int32_t>(extra.size());
  flattening.offset = AlignedBuffer<float>(extra.size());
  for (size_t i = 0; i < extra.size(); ++i) {
    FLATQUANT_CHECK(extra[i].channel >= 0 && extra[i].channel < width && extra[i].piece >= 0);
    flattening.channel[i] = extra[i].channel;
    flattening.offset[i] = static_cast<float>(extra[i].piece * top);
  }
  flattening.kernel = kernel != nullptr ? kernel : BestKernel<FlattenQuantizeKernel>().kernel;
  return flattening;
}

void FlattenQuantize(const FlattenQuantizeArgs& args, ThreadPool& pool) noexcept {
  FLATQUANT_CHECK(args.flattening->kernel != nullptr);
  FLATQUANT_CHECK(args.code_stride >= args.flattening->columns());
  FLATQUANT_CHECK(args.input.norm_weight == nullptr || args.input.up == nullptr);
  // Few tokens are shared by all threads: a token's result depends on no other.
  const int64_t share = (args.tokens + pool.threads() - 1) / pool.threads();
  const int64_t slice = std::clamp<int64_t>(share, 1, TokenSlice(args.flattening->width));
  pool.ParallelFor(static_cast<size_t>(args.tokens), static_cast<size_t>(slice),
                   [&](size_t begin, size_t end) {
                     RunTask(args, static_cast<int64_t>(begin), static_cast<int64_t>(end));
                   });
}

}  // namespace flatquant
