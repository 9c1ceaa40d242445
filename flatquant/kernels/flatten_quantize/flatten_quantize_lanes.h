#pragma once

#include <cstdint>

#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"
#include "flatquant/kernels/float_lanes.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// x / s rounded, for channels within 16 bits; what is beyond stays beyond, so that
// quotients stay in float's range. The lower bound first: in this order NaN becomes a
// number.
struct FlattenDivide {
  Lanes scale;
  Lanes limit;
  Lanes operator()(Lanes x) const {
    return RoundLanes(MinLanes(MaxLanes(x, -limit), limit) / scale);
  }
};

// The same at a quarter of a division's price: the remainder of the first estimate is
// exact, and corrects it. For scales whose reciprocal is in float's range.
struct FlattenMultiply {
  Lanes scale;
  Lanes reciprocal;
  Lanes limit;
  Lanes operator()(Lanes x) const {
    const Lanes v = MinLanes(MaxLanes(x, -limit), limit);
    const Lanes estimate = v * reciprocal;
    return RoundLanes(MulAdd(MulSub(estimate, scale, v), reciprocal, estimate));
  }
};

// Calls value(c) for the index of each register's first column and stores the codes.
template <typename Rounded>
inline void StoreFlattened(const Flattening& flattening, const float* x, const float* gathered,
                           const Rounded& rounded, int8_t* codes) {
  const Lanes top = SetLanes(static_cast<float>((1 << (flattening.bits - 1)) - 1));
  const auto clamped = [&](Lanes q) { return MinLanes(MaxLanes(q, -top), top); };
  const int64_t width = flattening.width;
  int64_t c = 0;
  for (; c + kLanes <= width; c += kLanes) {
    StoreInt8(codes + c, clamped(rounded(LoadLanes(x + c))));
  }
  if (c < width) {
    StoreFirstInt8(codes + c, clamped(rounded(LoadFirst(x + c, width - c))), width - c);
  }
  // sign(q) max(|q| - offset, 0) = q - clamp(q, -offset, offset)
  const auto beyond = [&](Lanes q, Lanes offset) {
    return clamped(q - MinLanes(MaxLanes(q, -offset), offset));
  };
  const int64_t extra = flattening.extra();
  const float* offset = flattening.offset.data();
  int8_t* rest = codes + width;
  int64_t i = 0;
  for (; i + kLanes <= extra; i += kLanes) {
    StoreInt8(rest + i, beyond(rounded(LoadLanes(gathered + i)), LoadLanes(offset + i)));
  }
  if (i < extra) {
    const int64_t n = extra - i;
    StoreFirstInt8(rest + i, beyond(rounded(LoadFirst(gathered + i, n)), LoadFirst(offset + i, n)),
                   n);
  }
}

inline void FlattenQuantizeLanes(const Flattening& flattening, const float* x,
                                 const float* gathered, int8_t* codes,
                                 int64_t code_stride) noexcept {
  const float scale = flattening.scale;
  const Lanes limit = SetLanes(65536.0f * scale);
  if (scale < 0x1p-100f || scale > 0x1p100f) {
    StoreFlattened(flattening, x, gathered, FlattenDivide{SetLanes(scale), limit}, codes);
  } else {
    StoreFlattened(flattening, x, gathered,
                   FlattenMultiply{SetLanes(scale), SetLanes(1.0f / scale), limit}, codes);
  }
  for (int64_t c = flattening.columns(); c < code_stride; ++c) codes[c] = 0;
}

}  // namespace
}  // namespace flatquant
