#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <climits>
#include <type_traits>

#include "flatquant/compress/ops/fake_quant_kernels.cuh"

// One warp per row, as fake_quant_rows.h computes it: the same roundings, so that the results
// are those of the CPU. Products whose rounding matters are written so that the compiler does
// not fuse them into a multiply-add.
namespace flatquant::compress {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 8;
constexpr unsigned kAll = 0xffffffffu;

template <typename T, typename Join>
__device__ T AcrossWarp(T value, Join join) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) {
    value = join(value, __shfl_xor_sync(kAll, value, offset));
  }
  return value;
}

__device__ float Sum(float value) {
  return AcrossWarp(value, [](float a, float b) { return a + b; });
}

__device__ int First(int index) {
  return AcrossWarp(index, [](int a, int b) { return min(a, b); });
}

__device__ float Load(const float* from) { return *from; }
__device__ float Load(const __nv_bfloat16* from) { return __bfloat162float(*from); }
__device__ float Load(const __half* from) { return __half2float(*from); }
__device__ void Store(float value, float* to) { *to = value; }
__device__ void Store(float value, __nv_bfloat16* to) { *to = __float2bfloat16_rn(value); }
__device__ void Store(float value, __half* to) { *to = __float2half_rn(value); }

// NaN stays NaN, so that a loss shows it.
__device__ float Clamp(float value, float low, float high) {
  value = value > high ? high : value;
  return value < low ? low : value;
}

// RowGrid of fake_quant_rows.h.
template <GridKind kKind>
__device__ RowGrid GridOf(float hi, float lo, int bits) {
  RowGrid grid{};
  grid.hi = hi;
  grid.lo = lo;
  float reach;
  if constexpr (kKind == GridKind::kKv) {
    grid.q_max = static_cast<float>((1 << bits) - 1);
    reach = __fsub_rn(hi, lo);
    grid.ds_dhi = 1 / grid.q_max;
    grid.ds_dlo = -1 / grid.q_max;
  } else {
    grid.q_max = static_cast<float>((1 << (bits - 1)) - 1);
    grid.q_min = -grid.q_max - 1;
    reach = fmaxf(hi, -lo);
    const float share = hi == -lo ? 0.5f : 1.0f;
    grid.ds_dhi = hi == reach ? share / grid.q_max : 0;
    grid.ds_dlo = -lo == reach ? -share / grid.q_max : 0;
  }
  grid.scale = reach / grid.q_max;
  if (grid.scale == 0) {
    grid.scale = 1;
    grid.ds_dhi = grid.ds_dlo = 0;
  }
  if constexpr (kKind == GridKind::kKv) grid.zero = rintf(-lo / grid.scale);
  return grid;
}

struct Factors {
  float max, min;
};

__device__ Factors FactorsOf(const FakeQuantRows& rows, int64_t row) {
  return {rows.max_factor[row * rows.max_step], rows.min_factor[row * rows.min_step]};
}

template <GridKind kKind>
__device__ RowGrid GridOf(const Range& range, const Factors& factors, int bits) {
  return GridOf<kKind>(__fmul_rn(range.max, factors.max), __fmul_rn(range.min, factors.min), bits);
}

__device__ int64_t RowOfWarp() {
  return static_cast<int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
}

template <GridKind kKind, typename T>
__global__ void Quantize(FakeQuantRows rows, T* y) {
  const int64_t row = RowOfWarp();
  if (row >= rows.rows) return;
  const int lane = threadIdx.x % kWarp;
  const float* x = rows.x + row * rows.n;
  float max = 0, min = 0;
  for (int64_t j = lane; j < rows.n; j += kWarp) {
    max = fmaxf(max, x[j]);
    min = fminf(min, x[j]);
  }
  const Range range = {AcrossWarp(max, [](float a, float b) { return fmaxf(a, b); }),
                       AcrossWarp(min, [](float a, float b) { return fminf(a, b); })};
  if (lane == 0) rows.ranges[row] = range;
  const RowGrid g = GridOf<kKind>(range, FactorsOf(rows, row), rows.bits);
  for (int64_t j = lane; j < rows.n; j += kWarp) {
    float value = x[j];
    if constexpr (kKind == GridKind::kWeight) value = Clamp(value, g.lo, g.hi);
    float q = rintf(value / g.scale) + g.zero;
    if constexpr (kKind != GridKind::kWeight) q = Clamp(q, g.q_min, g.q_max);
    Store(__fmul_rn(g.scale, q - g.zero), y + row * rows.n + j);
  }
}

template <GridKind kKind, typename T>
__global__ void QuantizeBackward(FakeQuantRows rows, const T* dy, float* dx, float* dmax,
                                 float* dmin) {
  const int64_t row = RowOfWarp();
  if (row >= rows.rows) return;
  const int lane = threadIdx.x % kWarp;
  const float* x = rows.x + row * rows.n;
  const Range range = rows.ranges[row];
  const Factors factors = FactorsOf(rows, row);
  const RowGrid g = GridOf<kKind>(range, factors, rows.bits);
  float scale_gradient = 0, above = 0, below = 0;
  int first_max = INT_MAX, first_min = INT_MAX;
  for (int64_t j = lane; j < rows.n; j += kWarp) {
    const float gradient = Load(dy + row * rows.n + j);
    const float value = x[j];
    if (value == range.max) first_max = min(first_max, static_cast<int>(j));
    if (value == range.min) first_min = min(first_min, static_cast<int>(j));
    float through = gradient;
    if constexpr (kKind == GridKind::kWeight) {
      if (value > g.hi) {
        above += gradient;
        through = 0;
      } else if (value < g.lo) {
        below += gradient;
        through = 0;
      }
      const float u = Clamp(value, g.lo, g.hi) / g.scale;
      scale_gradient += gradient * (rintf(u) - u);
    } else {
      const float u = value / g.scale;
      const float q = rintf(u) + g.zero;
      const float clamped = Clamp(q, g.q_min, g.q_max);
      const bool inside = q == clamped;
      if (!inside) through = 0;
      scale_gradient += gradient * (clamped - g.zero - (inside ? u : 0.0f));
    }
    dx[row * rows.n + j] = through;
  }
  scale_gradient = Sum(scale_gradient);
  const float to_hi = scale_gradient * g.ds_dhi + Sum(above);
  const float to_lo = scale_gradient * g.ds_dlo + Sum(below);
  first_max = First(first_max);
  first_min = First(first_min);
  __syncwarp();  // dx of the whole row is written
  if (lane != 0) return;
  dmax[row] = to_hi * range.max;
  dmin[row] = to_lo * range.min;
  // The range is the element that attains it, where it is not 0.
  if (range.max > 0) dx[row * rows.n + first_max] += to_hi * factors.max;
  if (range.min < 0) dx[row * rows.n + first_min] += to_lo * factors.min;
}

// Calls launch with the kernel's grid kind and element type as types.
template <typename Launch>
void Dispatch(const FakeQuantRows& rows, Launch launch) {
  const auto by_type = [&](auto kind) {
    switch (rows.element) {
      case RowElement::kFloat:
        return launch(kind, float{});
      case RowElement::kBFloat16:
        return launch(kind, __nv_bfloat16{});
      case RowElement::kHalf:
        return launch(kind, __half{});
    }
  };
  switch (rows.kind) {
    case GridKind::kActivation:
      return by_type(std::integral_constant<GridKind, GridKind::kActivation>{});
    case GridKind::kKv:
      return by_type(std::integral_constant<GridKind, GridKind::kKv>{});
    case GridKind::kWeight:
      return by_type(std::integral_constant<GridKind, GridKind::kWeight>{});
  }
}

unsigned BlocksFor(const FakeQuantRows& rows) {
  return static_cast<unsigned>((rows.rows + kWarpsPerBlock - 1) / kWarpsPerBlock);
}

}  // namespace

void LaunchFakeQuant(const FakeQuantRows& rows, void* y, cudaStream_t stream) {
  Dispatch(rows, [&](auto kind, auto element) {
    using T = decltype(element);
    Quantize<decltype(kind)::value, T>
        <<<BlocksFor(rows), kWarpsPerBlock * kWarp, 0, stream>>>(rows, static_cast<T*>(y));
  });
}

void LaunchFakeQuantBackward(const FakeQuantRows& rows, const void* dy, float* dx, float* dmax,
                             float* dmin, cudaStream_t stream) {
  Dispatch(rows, [&](auto kind, auto element) {
    using T = decltype(element);
    QuantizeBackward<decltype(kind)::value, T>
        <<<BlocksFor(rows), kWarpsPerBlock * kWarp, 0, stream>>>(rows, static_cast<const T*>(dy),
                                                                 dx, dmax, dmin);
  });
}

}  // namespace flatquant::compress
