#include <fmt/format.h>

#include <cmath>

#include "flatquant/bench/cuda/gpu_operations.h"
#include "flatquant/kernels/attention/cuda_attention.h"

namespace flatquant::bench {
namespace {

// K and V of one layer for some sequences, with random contents.
struct GpuCache {
  DeviceBuffer<uint8_t> data, zero;
  DeviceBuffer<uint16_t> scale;
  CudaKvPlane k, v;

  GpuCache(const ModelConfig& config, int bits, int64_t slots, int64_t capacity) {
    k.bits = bits;
    k.heads = config.kv_heads;
    k.head_dim = config.head_dim;
    k.capacity = capacity;
    const auto vectors = static_cast<size_t>(slots * k.heads * capacity);
    const size_t plane = vectors * static_cast<size_t>(k.VectorBytes());
    if (k.packed()) {
      data = cuda_bench::RandomBytes(2 * plane, 1);
      scale = cuda_bench::RandomBf16Scales(vectors, 2);
      zero = DeviceBuffer<uint8_t>(vectors);
      zero.Fill(7);
      k.scale = scale.get();
      k.zero = zero.get();
      k.data = data.get();
    } else {
      const DeviceBuffer<uint16_t> halves = cuda_bench::RandomHalves(plane, 1);
      data = DeviceBuffer<uint8_t>(2 * plane);
      FLATQUANT_CUDA(cudaMemcpy(data.get(), halves.get(), 2 * plane, cudaMemcpyDeviceToDevice));
      k.data = data.get();
    }
    v = k;
    v.data = data.get() + plane;
  }
  uint64_t bytes() const {
    return data.bytes() + (k.packed() ? 2 : 0) * (scale.bytes() + zero.bytes());
  }
};

class AttentionBench {
 public:
  AttentionBench(const ModelConfig& config, const Plan& plan, LimitedResults* results)
      : config_(config), plan_(plan), results_(results) {}

  void Prompt(int bits, int64_t tokens, int64_t batch, int64_t depth) {
    const GpuCache cache(config_, bits, batch, RoundUpTo(depth + tokens, 32));
    Operands(batch * tokens);
    std::vector<CudaAttentionSegment> segments;
    for (int64_t b = 0; b < batch; ++b) {
      segments.push_back({static_cast<int32_t>(b), static_cast<int32_t>(depth),
                          static_cast<int32_t>(b * tokens), static_cast<int32_t>(tokens)});
    }
    CudaAttentionPrefillArgs args;
    Fill(cache, batch * tokens, &args);
    args.segments = segments.data();
    args.segment_count = batch;
    // A token sees itself and all before it: two products of head_dim each.
    const double pairs = static_cast<double>(tokens) *
                         (static_cast<double>(depth) + static_cast<double>(tokens + 1) / 2);
    const double work = 4.0 * pairs * static_cast<double>(config_.q_width() * batch);
    AddGpuResult(
        NewResult("pp", bits, tokens, batch, depth, cache), plan_, 1, work, FloatPeak,
        [&](int, cudaStream_t stream) { CudaAttentionPrefill(args, stream); }, results_);
  }

  void Step(int bits, int64_t batch, int64_t depth) {
    const int64_t length = depth + 1;
    const GpuCache one(config_, bits, batch, RoundUpTo(length, 32));
    const int copies = GpuCopies(one.bytes());
    std::vector<GpuCache> caches;
    for (int i = 0; i < copies; ++i) {
      caches.emplace_back(config_, bits, batch, RoundUpTo(length, 32));
    }
    Operands(batch);
    std::vector<int32_t> order;
    for (int64_t b = 0; b < batch; ++b) order.push_back(static_cast<int32_t>(b));
    const DeviceBuffer<int32_t> slots(order);
    const DeviceBuffer<int32_t> lengths(
        std::vector<int32_t>(order.size(), static_cast<int32_t>(length)));
    CudaAttentionDecodeArgs args;
    Fill(one, batch, &args);
    args.slots = slots.get();
    args.lengths = lengths.get();
    args.max_length = one.k.capacity;
    const DeviceBuffer<uint8_t> workspace(static_cast<size_t>(CudaAttentionWorkspaceBytes(args)));
    args.workspace = workspace.get();
    AddGpuResult(
        NewResult("tg", bits, 1, batch, depth, one), plan_, copies,
        static_cast<double>(one.bytes()), ReadBandwidth,
        [&](int i, cudaStream_t stream) {
          const GpuCache& cache = caches[static_cast<size_t>(i % copies)];
          args.k = cache.k;
          args.v = cache.v;
          CudaAttentionDecode(args, stream);
        },
        results_);
  }

 private:
  void Operands(int64_t rows) {
    q_ = cuda_bench::RandomHalves(static_cast<size_t>(rows * config_.q_width()), 3);
    y_ = DeviceBuffer<uint16_t>(q_.size());
  }

  void Fill(const GpuCache& cache, int64_t rows, CudaAttentionArgs* args) const {
    args->q = q_.get();
    args->y = y_.get();
    args->tokens = rows;
    args->heads = config_.heads;
    args->scale = 1.0f / std::sqrt(static_cast<float>(config_.head_dim));
    args->k = cache.k;
    args->v = cache.v;
  }

  static Result NewResult(const char* kind, int bits, int64_t tokens, int64_t batch, int64_t depth,
                          const GpuCache& cache) {
    Result result;
    result.bench = "attention";
    result.variant = fmt::format("kv{}", bits);
    result.test = fmt::format("{}{} @ d{}", kind, tokens, depth);
    result.batch = batch;
    result.bytes = cache.bytes();
    return result;
  }

  const ModelConfig& config_;
  const Plan& plan_;
  LimitedResults* results_;
  DeviceBuffer<uint16_t> q_, y_;
};

}  // namespace

void RunGpuAttention(const ModelConfig& config, const Plan& plan, Run* run) {
  LimitedResults results = GpuResults();
  AttentionBench bench(config, plan, &results);
  for (int bits : {4, 16}) {
    for (int64_t depth : plan.depths) {
      for (int64_t batch : plan.batches) {
        for (int64_t n : plan.prompts) {
          if (n > 0) bench.Prompt(bits, n, std::min(batch, kCudaMaxSegments), depth);
        }
        bench.Step(bits, batch, depth);
      }
    }
  }
  results.Finish(run);
}

}  // namespace flatquant::bench
