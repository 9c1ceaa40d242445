#include <fmt/format.h>

#include "flatquant/bench/operations.h"
#include "flatquant/bench/stopwatch.h"
#include "flatquant/bench/synthetic_model.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/quantize_kv/quantize_kv.h"
#include "flatquant/kernels/rope/rope.h"
#include "flatquant/model/network.h"

namespace flatquant::bench {
namespace {

class KernelBench {
 public:
  KernelBench(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run)
      : config_(config), plan_(plan), pool_(pool), run_(run) {}

  void AllFor(int64_t tokens) {
    for (Site site : kSites) OneSite(site, tokens);
    Rotation(tokens);
    Store(tokens);
  }

 private:
  template <typename Body>
  void Add(const std::string& variant, int64_t tokens, const Body& body) {
    std::vector<double> values;
    for (double s : SecondsPerCall(plan_.repetitions, [&](int64_t) { body(); })) {
      values.push_back(1e6 * s);
    }
    Result result;
    result.bench = "kernel";
    result.variant = variant;
    result.test = fmt::format("m{}", tokens);
    result.batch = tokens;
    result.value = Median(values);
    result.spread = Deviation(values);
    result.unit = "us";
    run_->results.push_back(std::move(result));
  }

  // As FlatQuant has it: norm or SwiGLU, Kronecker transform, 4-bit quantization.
  void OneSite(Site site, int64_t tokens) {
    const int64_t width = SiteWidth(config_, site);
    const bool mixes_heads = site == Site::kAttnOut;
    const Factors factors =
        mixes_heads ? Factors{config_.heads, config_.head_dim} : NearestFactors(width);
    const auto left = RandomFloats(factors.left * factors.left, rng_);
    const auto right = RandomFloats(factors.right * factors.right, rng_);
    const KronTransform transform = PackKronTransform(
        factors.left, reinterpret_cast<const std::byte*>(left.data()), factors.right,
        mixes_heads ? nullptr : reinterpret_cast<const std::byte*>(right.data()));
    const auto x = RandomFloats(tokens * width, rng_);
    const auto up = RandomFloats(tokens * width, rng_);
    AlignedBuffer<int8_t> codes(static_cast<size_t>(tokens * GemmIntActStride(width)));
    AlignedBuffer<float> scales(static_cast<size_t>(tokens));
    const KronClip clip;
    KronQuantizeArgs args;
    args.x = x.data();
    if (site == Site::kMlpOut) args.input.up = up.data();
    if (site == Site::kAttnIn || site == Site::kMlpIn) args.input.norm_weight = up.data();
    args.input.norm_eps = config_.rms_eps;
    args.tokens = tokens;
    args.transform = &transform;
    args.bits = 4;
    args.clips = &clip;
    args.clip_count = 1;
    args.codes = codes.data();
    args.code_stride = GemmIntActStride(width);
    args.scales = scales.data();
    Add(fmt::format("{} {}x{}", SiteName(site), factors.left, factors.right), tokens,
        [&] { KronQuantize(args, pool_); });
  }

  void Rotation(int64_t tokens) {
    auto x = RandomFloats(tokens * config_.q_width(), rng_);
    AlignedBuffer<float> cos(static_cast<size_t>(tokens * config_.head_dim / 2));
    AlignedBuffer<float> sin(cos.size());
    for (float& value : cos) value = 1;  // x stays x, whatever the number of calls
    Add("rope of q", tokens, [&] {
      Rope({x.data(), tokens, config_.heads, config_.head_dim, cos.data(), sin.data()}, pool_);
    });
  }

  void Store(int64_t tokens) {
    const auto x = RandomFloats(tokens * config_.kv_width(), rng_);
    const auto vectors = static_cast<size_t>(config_.kv_heads * tokens);
    AlignedBuffer<uint8_t> data(vectors * KvRowBytes(KvFormat::kNibble, config_.head_dim));
    AlignedBuffer<float> scale(vectors);
    AlignedBuffer<uint8_t> zero(vectors);
    QuantizeKvArgs args;
    args.x = x.data();
    args.tokens = tokens;
    args.plane = {KvFormat::kNibble, 4,          config_.kv_heads,
                  config_.head_dim,  tokens,     data.data(),
                  scale.data(),      zero.data()};
    Add("quantize_kv of k", tokens, [&] { QuantizeKv(args, pool_); });
  }

  const ModelConfig& config_;
  const Plan& plan_;
  ThreadPool& pool_;
  Run* run_;
  Rng rng_{1};
};

}  // namespace

void RunKernels(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run) {
  KernelBench bench(config, plan, pool, run);
  for (int64_t batch : plan.batches) bench.AllFor(batch);
  for (int64_t n : plan.prompts) {
    if (n > 0) bench.AllFor(n);
  }
}

}  // namespace flatquant::bench
