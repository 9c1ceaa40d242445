#pragma once

#include <cstdint>

#include "flatquant/base/thread_pool.h"
#include "flatquant/kernels/quantize_kv/kv_plane.h"

namespace flatquant {

// Stores new K or V vectors in the cache, at positions first_position + t. Integer
// formats quantize each vector v asymmetrically:
//
//   lo = clip_min * min(v, 0), hi = clip_max * max(v, 0)
//   s = (hi - lo) / (2^b - 1), z = round(-lo / s)
//   q = clamp(round(v / s) + z, 0, 2^b - 1)
//
// with s = 1, z = 0 for a vector of zeros; round is half to even.
struct QuantizeKvArgs {
  const float* x = nullptr;  // [tokens, heads, head_dim]
  int64_t tokens = 0;
  int64_t first_position = 0;  // first_position + tokens <= plane.capacity
  float clip_max = 1.0f;
  float clip_min = 1.0f;
  KvPlane plane;
};

struct QuantizeKvKernel {
  void (*run)(const QuantizeKvArgs& args, int64_t token_begin, int64_t token_end) noexcept;
};

void QuantizeKv(const QuantizeKvArgs& args, ThreadPool& pool) noexcept;

// The formula for one vector x [head_dim], in plain C++.
void QuantizeKvVector(const KvPlane& plane, int64_t head, int64_t position, float clip_max,
                      float clip_min, const float* x) noexcept;

}  // namespace flatquant
