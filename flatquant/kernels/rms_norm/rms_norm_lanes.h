#pragma once

#include "flatquant/kernels/float_lanes.h"
#include "flatquant/kernels/rms_norm/rms_norm.h"

namespace flatquant {
namespace {  // a copy per file, because files differ in instruction set

// Four partial sums hide the additions' latency.
inline float SumOfSquares(const float* x, int64_t n) {
  Lanes sum[4] = {SetLanes(0), SetLanes(0), SetLanes(0), SetLanes(0)};
  int64_t c = 0;
  for (; c + 4 * kLanes <= n; c += 4 * kLanes) {
    for (int64_t j = 0; j < 4; ++j) {
      const Lanes v = LoadLanes(x + c + j * kLanes);
      sum[j] = MulAdd(v, v, sum[j]);
    }
  }
  for (; c + kLanes <= n; c += kLanes) {
    const Lanes v = LoadLanes(x + c);
    sum[0] = MulAdd(v, v, sum[0]);
  }
  const Lanes rest = LoadFirst(x + c, n - c);
  sum[1] = MulAdd(rest, rest, sum[1]);
  return SumOfLanes((sum[0] + sum[1]) + (sum[2] + sum[3]));
}

inline void RmsNormRows(const RmsNormArgs& args, int64_t row_begin, int64_t row_end) noexcept {
  const int64_t n = args.cols;
  for (int64_t i = row_begin; i < row_end; ++i) {
    const float* x = args.x + i * n;
    float* y = args.y + i * n;
    const float mean = SumOfSquares(x, n) / static_cast<float>(n);
    const Lanes scale = SetLanes(1.0f / __builtin_sqrtf(mean + args.eps));
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) {
      StoreLanes(y + c, LoadLanes(x + c) * scale * LoadLanes(args.weight + c));
    }
    const int64_t rest = n - c;
    StoreFirst(y + c, LoadFirst(x + c, rest) * scale * LoadFirst(args.weight + c, rest), rest);
  }
}

}  // namespace
}  // namespace flatquant
