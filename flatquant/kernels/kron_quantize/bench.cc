// Speed of every kron_quantize kernel that this CPU runs, on all its cores:
//
//   flatquant_kernels_bench --benchmark_filter=KronQuantize
//
// The whole operation at 4 bits: RMSNorm or SwiGLU, transform, quantization. GFLOP/s
// and percent of the limit count the transform's arithmetic alone, as a plain product
// would do it; the limit is that of float multiply-adds (of the widest vectors, also
// for a kernel of narrower ones), of bfloat16 pairs or of bfloat16 tiles. It is measured
// by this process (limits/limits.h), right before each row, because clocks and neighbours
// change.
#include <benchmark/benchmark.h>

#include <chrono>
#include <string>

#include "flatquant/base/rng.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/limits/limits.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

struct Shape {
  int64_t left;
  int64_t right;
  bool swiglu;  // a down projection's input, else a norm's output
};

// Hidden and intermediate widths of TinyLlama, Llama 2 7B, Llama 3 8B and of a small
// model with awkward factors.
constexpr Shape kShapes[] = {{32, 64, false},  {64, 88, true},  {64, 64, false}, {86, 128, true},
                             {112, 128, true}, {16, 32, false}, {16, 86, true}};

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

AlignedBuffer<float> Random(Rng& rng, int64_t n) {
  AlignedBuffer<float> values(static_cast<size_t>(n));
  for (float& value : values) value = static_cast<float>(rng.Normal());
  return values;
}

void Run(benchmark::State& state, const KernelEntry<KronQuantizeKernel>& entry, Shape shape,
         int64_t tokens) {
  const int64_t width = shape.left * shape.right;
  Rng rng(1);
  const AlignedBuffer<float> left = Random(rng, shape.left * shape.left);
  const AlignedBuffer<float> right = Random(rng, shape.right * shape.right);
  const AlignedBuffer<float> x = Random(rng, tokens * width);
  const AlignedBuffer<float> up = Random(rng, tokens * width);
  const KronTransform transform =
      PackKronTransform(shape.left, reinterpret_cast<const std::byte*>(left.data()), shape.right,
                        reinterpret_cast<const std::byte*>(right.data()), entry.kernel);
  const KronClip clip;
  KronQuantizeArgs args;
  args.x = x.data();
  if (shape.swiglu) {
    args.input.up = up.data();
  } else {
    args.input.norm_weight = up.data();
    args.input.norm_eps = 1e-5f;
  }
  args.tokens = tokens;
  args.transform = &transform;
  args.bits = 4;
  args.clips = &clip;
  args.clip_count = 1;
  args.code_stride = (width + 63) / 64 * 64;
  AlignedBuffer<int8_t> codes(static_cast<size_t>(tokens * args.code_stride));
  AlignedBuffer<float> scales(static_cast<size_t>(tokens));
  args.codes = codes.data();
  args.scales = scales.data();

  const CpuLimits limits = MeasureLimits(Pool());
  using Clock = std::chrono::steady_clock;
  const Clock::time_point begin = Clock::now();
  for (auto _ : state) {
    KronQuantize(args, Pool());
    benchmark::DoNotOptimize(codes.data());
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  const double flops = 2.0 * static_cast<double>(tokens * width * (shape.left + shape.right));
  const double rate = flops * static_cast<double>(state.iterations()) / seconds;
  const double peak = entry.isa == Isa::kAmxBf16      ? limits.amx_bf16_ops_per_s
                      : entry.isa == Isa::kAvx512Bf16 ? limits.avx512_bf16_ops_per_s
                                                      : limits.fma_flops_per_s;
  state.counters["GFLOP/s"] = 1e-9 * rate;
  state.counters["percent"] = 100 * rate / peak;
}

bool Register() {
  for (const KernelEntry<KronQuantizeKernel>& entry : KernelsOf<KronQuantizeKernel>()) {
    if (entry.isa == Isa::kReference || !CpuHas(GetCpuFeatures(), entry.isa)) continue;
    for (const Shape& shape : kShapes) {
      for (const int64_t tokens : {1, 512}) {
        const std::string name = "KronQuantize/" + std::string(entry.name) + "/" +
                                 std::to_string(shape.left * shape.right) +
                                 "/tokens:" + std::to_string(tokens);
        benchmark::RegisterBenchmark(name.c_str(), Run, entry, shape, tokens)
            ->UseRealTime()
            ->Unit(benchmark::kMicrosecond);
      }
    }
  }
  return true;
}

[[maybe_unused]] const bool registered = Register();

}  // namespace
}  // namespace flatquant
