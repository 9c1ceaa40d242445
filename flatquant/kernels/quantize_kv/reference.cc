#include <algorithm>
#include <cmath>
#include <cstring>

#include "flatquant/base/error.h"
#include "flatquant/base/half.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/registry.h"
#include "flatquant/kernels/row_tasks.h"

namespace flatquant {
namespace {

struct Grid {
  float scale;
  float zero;
};

Grid ChooseGrid(const float* x, int64_t n, float clip_max, float clip_min, float top) {
  float lo = 0;
  float hi = 0;
  for (int64_t i = 0; i < n; ++i) {
    lo = std::min(lo, x[i]);
    hi = std::max(hi, x[i]);
  }
  lo *= clip_min;
  hi *= clip_max;
  const float scale = (hi - lo) / top;
  if (!(scale > 0)) return {1.0f, 0.0f};  // zeros, or too small to tell from them
  return {scale, std::nearbyint(-lo / scale)};
}

uint8_t Quantize(float x, Grid grid, float top) {
  const float q = std::nearbyint(x / grid.scale) + grid.zero;
  return static_cast<uint8_t>(std::min(std::max(0.0f, q), top));  // in this order NaN gives 0
}

}  // namespace

void QuantizeKvVector(const KvPlane& plane, int64_t head, int64_t position, float clip_max,
                      float clip_min, const float* x) noexcept {
  const int64_t n = plane.head_dim;
  const size_t index = static_cast<size_t>(head * plane.capacity + position);
  uint8_t* out = plane.data + index * KvRowBytes(plane.format, n);
  if (plane.format == KvFormat::kF32) {
    std::memcpy(out, x, static_cast<size_t>(n) * sizeof(float));
    return;
  }
  if (plane.format == KvFormat::kBF16) {
    FloatToBF16(x, reinterpret_cast<uint16_t*>(out), static_cast<size_t>(n));
    return;
  }
  const float top = static_cast<float>((1 << plane.bits) - 1);
  const Grid grid = ChooseGrid(x, n, clip_max, clip_min, top);
  plane.scale[index] = grid.scale;
  plane.zero[index] = static_cast<uint8_t>(grid.zero);
  if (plane.format == KvFormat::kByte) {
    for (int64_t i = 0; i < n; ++i) out[i] = Quantize(x[i], grid, top);
    return;
  }
  for (int64_t i = 0; i < n / 2; ++i) {
    out[i] = static_cast<uint8_t>(Quantize(x[2 * i], grid, top) | Quantize(x[2 * i + 1], grid, top)
                                                                      << 4);
  }
  if (n % 2 != 0) out[n / 2] = Quantize(x[n - 1], grid, top);
}

namespace {

void Run(const QuantizeKvArgs& args, int64_t token_begin, int64_t token_end) noexcept {
  const KvPlane& plane = args.plane;
  for (int64_t t = token_begin; t < token_end; ++t) {
    for (int64_t h = 0; h < plane.heads; ++h) {
      QuantizeKvVector(plane, h, args.first_position + t, args.clip_max, args.clip_min,
                       args.x + (t * plane.heads + h) * plane.head_dim);
    }
  }
}

}  // namespace

extern const QuantizeKvKernel kQuantizeKvReference;
const QuantizeKvKernel kQuantizeKvReference = {Run};

void QuantizeKv(const QuantizeKvArgs& args, ThreadPool& pool) noexcept {
  FLATQUANT_CHECK(args.first_position >= 0 &&
                  args.first_position + args.tokens <= args.plane.capacity);
  RunRows(*BestKernel<QuantizeKvKernel>().kernel, args, args.tokens,
          args.plane.heads * args.plane.head_dim * 4, pool);
}

}  // namespace flatquant
