#pragma once

#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/swiglu/swiglu.h"
#include "flatquant/kernels/vector_exp.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Below the limit silu is less than 86 e^-86, which floats near 0 need not resolve;
// above it 1 + exp(-g) is a divisor that DivideLanes takes. From 87 on exp(-g) is lost
// beside 1.
inline Lanes SiluTimes(Lanes gate, Lanes up) {
  constexpr float kLimit = -86.0f;
  const Lanes bounded = MinLanes(MaxLanes(gate, SetLanes(kLimit)), SetLanes(87.0f));
  const Lanes divisor = SetLanes(1.0f) + ExpLanesWithin(-bounded);
  return ZeroBelow(DivideLanes(gate, divisor) * up, gate, kLimit);
}

inline void SwigluRows(const SwigluArgs& args, int64_t row_begin, int64_t row_end) noexcept {
  const int64_t end = row_end * args.cols;
  int64_t i = row_begin * args.cols;
  for (; i + kLanes <= end; i += kLanes) {
    StoreLanes(args.y + i, SiluTimes(LoadLanes(args.gate + i), LoadLanes(args.up + i)));
  }
  const int64_t rest = end - i;
  StoreFirst(args.y + i, SiluTimes(LoadFirst(args.gate + i, rest), LoadFirst(args.up + i, rest)),
             rest);
}

}  // namespace
}  // namespace flatquant
