#include <fmt/format.h>

#include <array>
#include <span>

#include "flatquant/bench/operations.h"
#include "flatquant/bench/stopwatch.h"
#include "flatquant/bench/synthetic_model.h"
#include "flatquant/kernels/gemm_int/gemm_int.h"
#include "flatquant/kernels/kron_quantize/kron_quantize.h"
#include "flatquant/kernels/store_heads/store_heads.h"
#include "flatquant/model/network.h"

namespace flatquant::bench {
namespace {

class KernelBench {
 public:
  KernelBench(const ModelConfig& config, const Plan& plan, ThreadPool& pool, Run* run)
      : config_(config), plan_(plan), pool_(pool), run_(run) {}

  void AllFor(int64_t tokens) {
    for (Site site : kSites) OneSite(site, tokens);
    Heads(tokens);
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

  // As FlatQuant has it: norm or SwiGLU, Kronecker transform, 4-bit quantization; then
  // without the transform, and the norm or SwiGLU alone. What is beyond the last is the
  // price of quantized activations.
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
    const KronTransform identity = PackKronTransform(1, nullptr, width, nullptr);
    args.transform = &identity;
    Add(fmt::format("{} quantize", SiteName(site)), tokens, [&] { KronQuantize(args, pool_); });
    if (args.input.is_none()) return;
    AlignedBuffer<float> y(x.size());
    args.bits = 16;
    args.y = y.data();
    Add(fmt::format("{} {}", SiteName(site), site == Site::kMlpOut ? "swiglu" : "norm"), tokens,
        [&] { KronQuantize(args, pool_); });
  }

  // Q, K and V of one sequence: rotation and transform of Q and K, K and V packed.
  void Heads(int64_t tokens) {
    const auto matrix = RandomFloats(config_.head_dim * config_.head_dim, rng_);
    const KronTransform transform = PackKronTransform(
        1, nullptr, config_.head_dim, reinterpret_cast<const std::byte*>(matrix.data()));
    const auto q = RandomFloats(tokens * config_.q_width(), rng_);
    const auto k = RandomFloats(tokens * config_.kv_width(), rng_);
    const auto angles = RandomFloats(tokens * config_.head_dim / 2, rng_);
    AlignedBuffer<float> y(q.size());
    const auto vectors = static_cast<size_t>(config_.kv_heads * tokens);
    AlignedBuffer<uint8_t> data(vectors * KvRowBytes(KvFormat::kNibble, config_.head_dim));
    AlignedBuffer<float> scale(vectors);
    AlignedBuffer<uint8_t> zero(vectors);
    std::array<StoreHeadsArgs, 3> items;
    for (StoreHeadsArgs& item : items) {
      item.x = k.data();
      item.tokens = tokens;
      item.heads = config_.kv_heads;
      item.head_dim = config_.head_dim;
      item.plane = {KvFormat::kNibble, 4,          config_.kv_heads,
                    config_.head_dim,  tokens,     data.data(),
                    scale.data(),      zero.data()};
    }
    for (StoreHeadsArgs* turned : {&items[0], &items[1]}) {
      turned->cos = turned->sin = angles.data();
      turned->transform = &transform;
    }
    items[0].x = q.data();
    items[0].heads = config_.heads;
    items[0].y = y.data();
    // V goes where K went: two items may not write one place at a time.
    Add("store_heads of q, k", tokens, [&] { StoreHeads(std::span(items).first(2), pool_); });
    Add("store_heads of v", tokens, [&] { StoreHeads(std::span(items).last(1), pool_); });
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
