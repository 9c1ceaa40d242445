#include "flatquant/kernels/attention/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "flatquant/bench/ceiling.h"
#include "flatquant/bench/operations.h"
#include "flatquant/bench/stopwatch.h"

namespace flatquant::bench {
namespace {

// K or V of one layer and sequence, with random contents.
class Plane {
 public:
  Plane(const ModelConfig& config, int bits, int64_t capacity, Rng& rng) {
    view_.format = bits == 16 ? KvFormat::kBF16 : KvFormat::kNibble;
    view_.bits = bits;
    view_.heads = config.kv_heads;
    view_.head_dim = config.head_dim;
    view_.capacity = capacity;
    const auto vectors = static_cast<size_t>(config.kv_heads * capacity);
    data_ = AlignedBuffer<uint8_t>(vectors * KvRowBytes(view_.format, config.head_dim));
    for (size_t i = 0; i < data_.size(); ++i) {
      data_[i] = static_cast<uint8_t>(rng.Next());
      if (bits == 16 && i % 2 == 1) data_[i] = (data_[i] & 0x80) | 0x3e;  // about 0.2
    }
    if (bits != 16) {
      scale_ = AlignedBuffer<float>(vectors);
      zero_ = AlignedBuffer<uint8_t>(vectors);
      for (float& scale : scale_) scale = 0.1f;
      for (uint8_t& zero : zero_) zero = 7;
    }
    view_.data = data_.data();
    view_.scale = scale_.data();
    view_.zero = zero_.data();
  }

  const KvPlane& view() const { return view_; }
  uint64_t bytes() const { return data_.size() + scale_.size() * sizeof(float) + zero_.size(); }

 private:
  AlignedBuffer<uint8_t> data_;
  AlignedBuffer<float> scale_;
  AlignedBuffer<uint8_t> zero_;
  KvPlane view_;
};

struct Cache {
  Plane k;
  Plane v;
};

}  // namespace

void RunAttention(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run) {
  LimitedResults results(pool);
  Rng rng(1);
  for (int bits : {4, 16}) {
    for (int64_t depth : plan.depths) {
      // A test: `tokens` new ones of each of `batch` sequences.
      const auto test = [&](const char* kind, int64_t tokens, int64_t batch) {
        const int64_t capacity = depth + tokens;
        const auto row = static_cast<uint64_t>(config.kv_width() * bits / 8 * 2);
        const int64_t wanted = CopiesBeyondCaches(row * static_cast<uint64_t>(capacity * batch));
        const int64_t copies = std::min<int64_t>(64, wanted);
        std::vector<Cache> caches;
        for (int64_t i = 0; i < copies * batch; ++i) {
          caches.push_back(
              {Plane(config, bits, capacity, rng), Plane(config, bits, capacity, rng)});
        }
        const AlignedBuffer<float> q = RandomFloats(batch * tokens * config.q_width(), rng);
        AlignedBuffer<float> y(q.size());
        std::vector<AttentionArgs> args(static_cast<size_t>(batch));
        const auto seconds = SecondsPerCall(plan.repetitions, [&](int64_t call) {
          for (int64_t b = 0; b < batch; ++b) {
            const Cache& cache = caches[static_cast<size_t>((call % copies) * batch + b)];
            AttentionArgs& a = args[static_cast<size_t>(b)];
            a.q = q.data() + b * tokens * config.q_width();
            a.tokens = tokens;
            a.first_position = depth;
            a.heads = config.heads;
            a.scale = 1.0f / std::sqrt(static_cast<float>(config.head_dim));
            a.k = cache.k.view();
            a.v = cache.v.view();
            a.y = y.data() + b * tokens * config.q_width();
          }
          Attention(args, pool);
        });
        std::vector<double> values;
        for (double s : seconds) values.push_back(1e6 * s);
        Result result;
        result.bench = "attention";
        result.variant = fmt::format("kv{}", bits);
        result.test = fmt::format("{}{} @ d{}", kind, tokens, depth);
        result.batch = batch;
        result.value = Median(values);
        result.spread = Deviation(values);
        result.unit = "us";
        result.bytes = (caches[0].k.bytes() + caches[0].v.bytes()) * static_cast<uint64_t>(batch);
        const double rate = static_cast<double>(result.bytes) / Median(seconds);
        results.Add(std::move(result), rate, tokens == 1 ? ReadBandwidth : nullptr);
      };
      for (int64_t n : plan.prompts) {
        if (n > 0) test("pp", n, 1);
      }
      for (int64_t batch : plan.batches) test("tg", 1, batch);
    }
  }
  results.Finish(run);
}

}  // namespace flatquant::bench
