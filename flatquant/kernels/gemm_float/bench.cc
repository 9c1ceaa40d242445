// Speed of the float linear layer: every GEMV kernel that this CPU runs at 1 and 4
// tokens, and the matrix product at 512, on all cores:
//
//   flatquant_kernels_bench --benchmark_filter=GemmFloat
//
// Few tokens are compared with the memory's read bandwidth (percent counts the bytes
// of the weights), many with the arithmetic's peak. Limits are measured by this process
// (limits/limits.h), right before each row.
#include <benchmark/benchmark.h>

#include <algorithm>
#include <string>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/half.h"
#include "flatquant/base/rng.h"
#include "flatquant/kernels/gemm_float/gemm_float.h"
#include "flatquant/kernels/gemm_float/gemv.h"
#include "flatquant/kernels/limits/limits.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

// 134 MB of bfloat16: beyond every cache.
constexpr int64_t kRows = 16384;
constexpr int64_t kCols = 4096;

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

FloatWeights RandomWeights(Rng& rng, int bits, GemmFloatMath math) {
  std::vector<uint16_t> values(static_cast<size_t>(kRows * kCols));
  for (uint16_t& value : values) {
    value = bits == 16 ? FloatToBF16(static_cast<float>(rng.Uniform() - 0.5))
                       : static_cast<uint16_t>(rng.Below(65536));
  }
  const std::vector<float> scale(static_cast<size_t>(kRows), 1.0f);
  FloatWeightsSource source;
  source.bits = bits;
  source.dtype = DType::kBF16;
  source.rows = kRows;
  source.cols = kCols;
  source.weight = reinterpret_cast<const std::byte*>(values.data());
  source.scale = reinterpret_cast<const std::byte*>(scale.data());
  return LoadFloatWeights(source, math, Pool());
}

// gemv: nullptr for the matrix product.
void Run(benchmark::State& state, const GemvKernel* gemv, int bits, GemmFloatMath math,
         int64_t tokens) {
  Rng rng(1);
  const FloatWeights weights = RandomWeights(rng, bits, math);
  AlignedBuffer<float> x(static_cast<size_t>(tokens * kCols));
  AlignedBuffer<float> y(static_cast<size_t>(tokens * kRows));
  for (float& value : x) value = static_cast<float>(rng.Normal());
  const GemmFloatArgs args = {x.data(), tokens, &weights, 0, kRows, y.data(), kRows};
  const CpuLimits limits = MeasureLimits(Pool());
  for (auto _ : state) {
    if (gemv != nullptr) {
      Gemv(args, Pool(), gemv);
    } else {
      GemmFloat(args, Pool());
    }
    benchmark::DoNotOptimize(y.data());
  }
  using benchmark::Counter;
  const double flops = 2.0 * static_cast<double>(kRows * kCols * tokens);
  state.counters["GFLOP/s"] = Counter(1e-9 * flops, Counter::kIsIterationInvariantRate);
  double share = 0;
  if (gemv != nullptr) {
    const auto bytes = static_cast<double>(weights.bytes());
    state.counters["GB/s"] = Counter(1e-9 * bytes, Counter::kIsIterationInvariantRate);
    share = bytes / limits.read_bytes_per_s;
  } else {
    const double bf16 = std::max(limits.amx_bf16_ops_per_s, limits.avx512_bf16_ops_per_s);
    const bool has_bf16 = math == GemmFloatMath::kBF16 && bf16 > 0;
    share = flops / (has_bf16 ? bf16 : limits.fma_flops_per_s);
  }
  state.counters["percent"] = Counter(100 * share, Counter::kIsIterationInvariantRate);
}

void RegisterOne(const std::string& kernel, const GemvKernel* gemv, int bits, GemmFloatMath math,
                 int64_t tokens) {
  const std::string name = "GemmFloat/" + kernel + "/w" + std::to_string(bits) +
                           (math == GemmFloatMath::kBF16 ? "_bf16" : "_f32") + "/tokens_" +
                           std::to_string(tokens);
  benchmark::RegisterBenchmark(name.c_str(), [=](benchmark::State& state) {
    Run(state, gemv, bits, math, tokens);
  })->UseRealTime();
}

bool Register() {
  for (int bits : {16, 8, 4}) {
    for (GemmFloatMath math : {GemmFloatMath::kBF16, GemmFloatMath::kF32}) {
      for (const KernelEntry<GemvKernel>& entry : KernelsOf<GemvKernel>()) {
        if (entry.isa == Isa::kReference || !CpuHas(GetCpuFeatures(), entry.isa)) continue;
        for (int64_t tokens : {1, 4}) {
          RegisterOne(std::string(entry.name), entry.kernel, bits, math, tokens);
        }
      }
      RegisterOne("Matrix", nullptr, bits, math, 512);
    }
  }
  return true;
}

[[maybe_unused]] const bool registered = Register();

}  // namespace
}  // namespace flatquant
