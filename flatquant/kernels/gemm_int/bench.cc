// Speed of every integer GEMM kernel that this CPU runs, on all its cores:
//
//   flatquant_kernels_bench --benchmark_filter=GemmInt
//
// Many tokens: GOPS and percent of the peak of the instructions that the kernel is made
// of. One token: weights come from memory, GB/s and percent of the read bandwidth. The
// limits are measured by this process (limits/limits.h), right before each row, because
// clocks and neighbours change.
#include <benchmark/benchmark.h>

#include <chrono>
#include <string>
#include <vector>

#include "flatquant/base/rng.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/limits/limits.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

struct Shape {
  int64_t rows;
  int64_t cols;
};

// Llama 2 7B's.
constexpr Shape kShapes[] = {{4096, 4096}, {11008, 4096}, {4096, 11008}};

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

double PeakOperations(const CpuLimits& limits, Isa isa) {
  switch (isa) {
    case Isa::kAmxInt8:
      return limits.amx_int8_ops_per_s;
    case Isa::kAvx512Vnni:
      return limits.vnni_ops_per_s;
    default:
      return limits.avx2_int8_ops_per_s;
  }
}

// Weights of one shape, as often as it takes to be read from memory, and one input.
struct Problem {
  Problem(Shape shape, int64_t tokens, int64_t weight_bytes, const GemmIntKernel& kernel) {
    Rng rng(1);
    std::vector<std::byte> nibbles(static_cast<size_t>(shape.rows * shape.cols / 2));
    for (std::byte& byte : nibbles) byte = static_cast<std::byte>(rng.Below(256));
    const std::vector<float> scales(static_cast<size_t>(shape.rows), 0.01f);
    const GemmIntSource source = {
        .bits = 4,
        .rows = shape.rows,
        .cols = shape.cols,
        .weight = nibbles.data(),
        .scale = reinterpret_cast<const std::byte*>(scales.data()),
    };
    for (int64_t bytes = 0; bytes <= weight_bytes; bytes += shape.rows * shape.cols / 2) {
      weights.push_back(PackGemmInt(source, Pool(), &kernel));
    }
    const int64_t stride = GemmIntActStride(shape.cols);
    act = AlignedBuffer<int8_t>(static_cast<size_t>(tokens * stride));
    for (int64_t m = 0; m < tokens; ++m) {
      for (int64_t c = 0; c < shape.cols; ++c) {
        act[static_cast<size_t>(m * stride + c)] = static_cast<int8_t>(rng.Below(15)) - 7;
      }
    }
    act_scale = AlignedBuffer<float>(static_cast<size_t>(tokens));
    for (float& scale : act_scale) scale = 0.1f;
    y = AlignedBuffer<float>(static_cast<size_t>(tokens * shape.rows));
    args = {.act = act.data(),
            .act_stride = stride,
            .act_scale = act_scale.data(),
            .tokens = tokens,
            .weights = nullptr,
            .y = y.data(),
            .y_stride = shape.rows,
            .act_bits = 4};
  }

  std::vector<GemmIntWeights> weights;
  AlignedBuffer<int8_t> act;
  AlignedBuffer<float> act_scale;
  AlignedBuffer<float> y;
  GemmIntArgs args;
};

// Returns the mean seconds of a call.
double Run(benchmark::State& state, Problem& problem) {
  using Clock = std::chrono::steady_clock;
  size_t calls = 0;
  const Clock::time_point begin = Clock::now();
  for (auto _ : state) {
    problem.args.weights = &problem.weights[calls++ % problem.weights.size()];
    GemmInt(problem.args, Pool());
    benchmark::DoNotOptimize(problem.y.data());
  }
  const double seconds = std::chrono::duration<double>(Clock::now() - begin).count();
  return seconds / static_cast<double>(calls);
}

void ManyTokens(benchmark::State& state, const KernelEntry<GemmIntKernel>& entry, Shape shape) {
  constexpr int64_t kTokens = 512;
  Problem problem(shape, kTokens, 0, *entry.kernel);
  const double operations = 2.0 * static_cast<double>(kTokens * shape.rows * shape.cols);
  const double peak = PeakOperations(MeasureLimits(Pool()), entry.isa);
  const double rate = operations / Run(state, problem);
  state.counters["GOPS"] = 1e-9 * rate;
  state.counters["percent"] = 100 * rate / peak;
}

void OneToken(benchmark::State& state, const KernelEntry<GemmIntKernel>& entry, Shape shape) {
  constexpr int64_t kWeightBytes = int64_t{512} << 20;  // more than caches hold
  Problem problem(shape, 1, kWeightBytes, *entry.kernel);
  const double peak = MeasureLimits(Pool()).read_bytes_per_s;
  const double rate = static_cast<double>(problem.weights[0].bytes()) / Run(state, problem);
  state.counters["GB/s"] = 1e-9 * rate;
  state.counters["percent"] = 100 * rate / peak;
}

bool Register() {
  for (const KernelEntry<GemmIntKernel>& entry : KernelsOf<GemmIntKernel>()) {
    if (entry.isa == Isa::kReference || !CpuHas(GetCpuFeatures(), entry.isa)) continue;
    for (const Shape& shape : kShapes) {
      const std::string name = "GemmInt/" + std::string(entry.name) + "/" +
                               std::to_string(shape.rows) + "x" + std::to_string(shape.cols);
      benchmark::RegisterBenchmark((name + "/tokens:512").c_str(), ManyTokens, entry, shape)
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
      benchmark::RegisterBenchmark((name + "/tokens:1").c_str(), OneToken, entry, shape)
          ->UseRealTime()
          ->Unit(benchmark::kMillisecond);
    }
  }
  return true;
}

[[maybe_unused]] const bool registered = Register();

}  // namespace
}  // namespace flatquant
