#pragma once

#include <cstdint>

#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/kron_quantize/ask_ahead.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

struct KronExtremes {
  float max;  // of the values and 0
  float min;
};

inline KronExtremes FindExtremes(const KronToken& token, KronAhead& ahead) {
  // Two of each hide the latency.
  Lanes max[2] = {SetLanes(0), SetLanes(0)};
  Lanes min[2] = {SetLanes(0), SetLanes(0)};
  const auto add = [&](Lanes v, int j) {
    max[j] = MaxLanes(v, max[j]);
    min[j] = MinLanes(v, min[j]);
  };
  for (int64_t i = 0; i < token.rows; ++i) {
    AskAhead(ahead);
    const float* y = token.y + i * token.stride;
    int64_t c = 0;
    for (; c + 2 * kLanes <= token.cols; c += 2 * kLanes) {
      add(LoadLanes(y + c), 0);
      add(LoadLanes(y + c + kLanes), 1);
    }
    if (c + kLanes <= token.cols) {
      add(LoadLanes(y + c), 0);
      c += kLanes;
    }
    if (c < token.cols) add(LoadFirst(y + c, token.cols - c), 1);
  }
  return {LargestLane(MaxLanes(max[0], max[1])), SmallestLane(MinLanes(min[0], min[1]))};
}

// Calls store(destination, codes as floats, count) for each register of a token;
// count is kLanes but at a row's end. quotient(v) is v / scale.
template <typename Quotient>
inline void StoreCodes(const KronToken& token, float top, int8_t* codes, KronAhead& ahead,
                       const Quotient& quotient) {
  const Lanes high = SetLanes(top);
  const Lanes low = SetLanes(-top - 1.0f);
  // Bounds are integers, so clamping before rounding is the same; the lower one
  // first: in this order NaN becomes a number.
  const auto clamped = [&](Lanes v) { return MinLanes(MaxLanes(quotient(v), low), high); };
  const auto bounded = [&](const float* y) { return MinLanes(high, quotient(LoadLanes(y))); };
  const int8_t lowest = static_cast<int8_t>(-top - 1.0f);
  for (int64_t i = 0; i < token.rows; ++i) {
    AskAhead(ahead);
    const float* y = token.y + i * token.stride;
    int8_t* row = codes + i * token.cols;
    int64_t c = 0;
    for (; c + 4 * kLanes <= token.cols; c += 4 * kLanes) {
      const Lanes four[4] = {bounded(y + c), bounded(y + c + kLanes), bounded(y + c + 2 * kLanes),
                             bounded(y + c + 3 * kLanes)};
      StoreInt8AtLeast(row + c, four, lowest);
    }
    for (; c + kLanes <= token.cols; c += kLanes) StoreInt8(row + c, clamped(LoadLanes(y + c)));
    if (c < token.cols) {
      const int64_t rest = token.cols - c;
      StoreFirstInt8(row + c, clamped(LoadFirst(y + c, rest)), rest);
    }
  }
}

inline void QuantizeToken(const KronToken& token, float scale, float top, int8_t* codes,
                          KronAhead& ahead) {
  if (scale < 0x1p-100f || scale > 0x1p100f) {  // where the reciprocal leaves float's range
    const Lanes divisor = SetLanes(scale);
    StoreCodes(token, top, codes, ahead, [&](Lanes v) { return v / divisor; });
    return;
  }
  // The quotient as division rounds it, at a quarter of its price: the remainder of
  // the first estimate is exact, and corrects it.
  const Lanes divisor = SetLanes(scale);
  const Lanes reciprocal = SetLanes(1.0f / scale);
  StoreCodes(token, top, codes, ahead, [&](Lanes v) {
    const Lanes estimate = v * reciprocal;
    return MulAdd(MulSub(estimate, divisor, v), reciprocal, estimate);
  });
}

inline void QuantizeLanes(const KronQuantizeArgs& args, int64_t t, const KronToken& token,
                          KronAhead& ahead) noexcept {
  const int64_t width = token.rows * token.cols;
  const float top = static_cast<float>((1 << (args.bits - 1)) - 1);
  const KronExtremes extremes = FindExtremes(token, ahead);
  for (int64_t k = 0; k < args.clip_count; ++k) {
    const int64_t index = k * args.tokens + t;
    const float from_max = __builtin_fabsf(args.clips[k].max * extremes.max);
    const float from_min = __builtin_fabsf(args.clips[k].min * extremes.min);
    float scale = (from_max > from_min ? from_max : from_min) / top;
    if (!(scale > 0)) scale = 1.0f;  // zeros, or too small to tell from them
    int8_t* codes = args.codes + index * args.code_stride;
    QuantizeToken(token, scale, top, codes, ahead);
    for (int64_t c = width; c < args.code_stride; ++c) codes[c] = 0;
    args.scales[index] = scale;
  }
}

}  // namespace
}  // namespace flatquant
