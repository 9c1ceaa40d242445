// Speed of every attention kernel that this CPU runs, on all its cores, at a context
// of 4096 tokens, or a prompt of 512:
//
//   flatquant_kernels_bench --benchmark_filter=Attention
//
// Decoding is compared with the memory's read bandwidth: percent counts the bytes of K
// and V that it has to read. Several layers take turns, more than caches hold, as in a
// network whose weights are read in between. Prefill is compared with float
// multiply-adds, counting what causal attention needs. Limits are measured by this
// process (limits/limits.h), right before each row.
#include <benchmark/benchmark.h>

#include <cmath>
#include <string>
#include <vector>

#include "flatquant/base/aligned_buffer.h"
#include "flatquant/base/rng.h"
#include "flatquant/kernels/attention/attention.h"
#include "flatquant/kernels/limits/limits.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/registry.h"

namespace flatquant {
namespace {

struct Shape {
  const char* name;
  int64_t heads;
  int64_t kv_heads;
  int64_t head_dim;
};
constexpr Shape kShapes[] = {{"tinyllama-1.1b", 32, 4, 64}, {"llama-2-7b", 32, 32, 128}};

ThreadPool& Pool() {
  static ThreadPool pool;
  return pool;
}

struct Plane {
  AlignedBuffer<uint8_t> data;
  AlignedBuffer<float> scale;
  AlignedBuffer<uint8_t> zero;
  KvPlane view;
};

Plane RandomPlane(Rng& rng, KvFormat format, const Shape& shape, int64_t positions) {
  Plane plane;
  const auto vectors = static_cast<size_t>(shape.kv_heads * positions);
  plane.data = AlignedBuffer<uint8_t>(vectors * KvRowBytes(format, shape.head_dim));
  plane.scale = AlignedBuffer<float>(vectors);
  plane.zero = AlignedBuffer<uint8_t>(vectors);
  plane.view = {format,
                4,
                shape.kv_heads,
                shape.head_dim,
                positions,
                plane.data.data(),
                plane.scale.data(),
                plane.zero.data()};
  AlignedBuffer<float> x(static_cast<size_t>(shape.kv_heads * shape.head_dim * 64));
  for (float& value : x) value = static_cast<float>(rng.Normal());
  for (int64_t p = 0; p < positions; p += 64) {
    QuantizeKv({x.data(), std::min<int64_t>(64, positions - p), p, 1, 1, plane.view}, Pool());
  }
  return plane;
}

void Run(benchmark::State& state, const AttentionKernel& kernel, const Shape& shape,
         KvFormat format, int64_t tokens, int64_t positions) {
  const size_t layer_bytes =
      2 * KvRowBytes(format, shape.head_dim) * static_cast<size_t>(shape.kv_heads * positions);
  constexpr size_t kBeyondCaches = size_t{256} << 20;
  const size_t layers = tokens > 1 ? 1 : kBeyondCaches / layer_bytes + 1;
  Rng rng(1);
  std::vector<Plane> k, v;
  for (size_t i = 0; i < layers; ++i) {
    k.push_back(RandomPlane(rng, format, shape, positions));
    v.push_back(RandomPlane(rng, format, shape, positions));
  }
  AlignedBuffer<float> q(static_cast<size_t>(tokens * shape.heads * shape.head_dim));
  AlignedBuffer<float> y(q.size());
  for (float& value : q) value = static_cast<float>(rng.Normal());
  AttentionArgs args;
  args.q = q.data();
  args.tokens = tokens;
  args.first_position = positions - tokens;
  args.heads = shape.heads;
  args.scale = 1.0f / std::sqrt(static_cast<float>(shape.head_dim));
  args.y = y.data();
  const CpuLimits limits = MeasureLimits(Pool());
  size_t layer = 0;
  for (auto _ : state) {
    args.k = k[layer].view;
    args.v = v[layer].view;
    Attention(args, Pool(), &kernel);
    benchmark::DoNotOptimize(y.data());
    layer = (layer + 1) % layers;
  }
  using benchmark::Counter;
  if (tokens == 1) {
    const auto bytes = static_cast<double>(layer_bytes);
    state.counters["GB/s"] = Counter(1e-9 * bytes, Counter::kIsIterationInvariantRate);
    state.counters["percent"] =
        Counter(100 * bytes / limits.read_bytes_per_s, Counter::kIsIterationInvariantRate);
  } else {
    const auto pairs = static_cast<double>(tokens * (tokens + 1) / 2);
    const double flops = 4 * pairs * static_cast<double>(shape.heads * shape.head_dim);
    state.counters["GFLOP/s"] = Counter(1e-9 * flops, Counter::kIsIterationInvariantRate);
    state.counters["percent"] =
        Counter(100 * flops / limits.fma_flops_per_s, Counter::kIsIterationInvariantRate);
  }
}

bool Register() {
  for (const KernelEntry<AttentionKernel>& entry : KernelsOf<AttentionKernel>()) {
    if (entry.isa == Isa::kReference || !CpuHas(GetCpuFeatures(), entry.isa)) continue;
    for (const Shape& shape : kShapes) {
      for (KvFormat format : {KvFormat::kNibble, KvFormat::kBF16}) {
        for (int64_t tokens : {1, 512}) {
          const std::string name = std::string("Attention/") + std::string(entry.name) + "/" +
                                   shape.name + (format == KvFormat::kNibble ? "/kv4/" : "/bf16/") +
                                   (tokens == 1 ? "decode_4096" : "prefill_512");
          benchmark::RegisterBenchmark(name.c_str(), [kernel = entry.kernel, shape, format,
                                                      tokens](benchmark::State& s) {
            Run(s, *kernel, shape, format, tokens, tokens == 1 ? 4096 : tokens);
          })->UseRealTime();
        }
      }
    }
  }
  return true;
}

[[maybe_unused]] const bool registered = Register();

}  // namespace
}  // namespace flatquant
