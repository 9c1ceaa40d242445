// Speed of every flatten_quantize kernel that this CPU runs, on all its cores:
//
//   flatquant_kernels_bench --benchmark_filter=FlattenQuantize
//
// RMSNorm or SwiGLU and quantization to 4 bits with a fifth more columns. GB/s counts
// what must be read and written once.
#include <benchmark/benchmark.h>

#include <string>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/kernels/flatten_quantize/flatten_quantize.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

void Run(benchmark::State& state, const KernelEntry<FlattenQuantizeKernel>& entry, int64_t width,
         bool swiglu, int64_t tokens) {
  Rng rng(1);
  AlignedBuffer<float> x(static_cast<size_t>(tokens * width));
  AlignedBuffer<float> up(static_cast<size_t>(tokens * width));
  for (float& value : x) value = static_cast<float>(rng.Normal());
  for (float& value : up) value = static_cast<float>(rng.Normal());
  std::vector<FlattenColumn> columns;
  for (int64_t c = 0; c < width; c += 5) columns.push_back({static_cast<int32_t>(c), 1});
  const Flattening flattening = MakeFlattening(width, 4, 0.2f, columns, entry.kernel);
  FlattenQuantizeArgs args;
  args.x = x.data();
  if (swiglu) {
    args.input.up = up.data();
  } else {
    args.input.norm_weight = up.data();
    args.input.norm_eps = 1e-5f;
  }
  args.tokens = tokens;
  args.flattening = &flattening;
  args.code_stride = (flattening.columns() + 63) / 64 * 64;
  AlignedBuffer<int8_t> codes(static_cast<size_t>(tokens * args.code_stride));
  AlignedBuffer<float> scales(static_cast<size_t>(tokens));
  args.codes = codes.data();
  args.scales = scales.data();
  for (auto _ : state) {
    FlattenQuantize(args, Pool());
    benchmark::DoNotOptimize(codes.data());
  }
  const int64_t bytes = tokens * (width * (swiglu ? 8 : 4) + flattening.columns());
  state.SetBytesProcessed(state.iterations() * bytes);
}

bool Register() {
  for (const KernelEntry<FlattenQuantizeKernel>& entry : KernelsOf<FlattenQuantizeKernel>()) {
    if (!CpuHas(GetCpuFeatures(), entry.isa)) continue;
    for (const int64_t width : {4096, 11008}) {
      for (const int64_t tokens : {1, 512}) {
        const std::string name = "FlattenQuantize/" + std::string(entry.name) + "/" +
                                 std::to_string(width) + "/tokens:" + std::to_string(tokens);
        benchmark::RegisterBenchmark(name.c_str(), Run, entry, width, width == 11008, tokens)
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
